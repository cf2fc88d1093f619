"""Reads the labeled images of online probes, one rank's share of them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import EvaluationBatches
from ssl_vit.data.labels import choose_images
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.values import ValueRange
from ssl_vit.monitors.probes import LabeledImages

CROP_RATIO = 0.875


class Share(NamedTuple):
    """Which part of the images a rank reads."""

    rank: int
    world_size: int


def read_labeled_images(
    shards: ShardSet,
    count: int,
    height_width: tuple[int, int],
    rank: int,
    world_size: int,
    values: ValueRange | None = None,
) -> LabeledImages:
    """A rank's share, decoded.

    Args:
        shards: With labels.
        count: Images of all ranks at the most.
        height_width: Of the center crop in pixels.
        rank: Whose share.
        world_size: Ranks in all.
        values: How values of more than 8 bits are shown.

    Raises:
        UserError: An image cannot be read.
    """
    train, test = choose_images(shards, count)
    numbers = np.concatenate([train, test])
    labels = torch.from_numpy(shards.labels[numbers].astype(np.int64))
    share = Share(rank, world_size)
    images, places = read_share(shards, numbers, height_width, share, values)
    return LabeledImages(images, places, labels, len(train), len(shards.classes))


def read_share(
    shards: ShardSet,
    numbers: np.ndarray,
    height_width: tuple[int, int],
    share: Share,
    values: ValueRange | None = None,
) -> tuple[Tensor, Tensor]:
    """A rank's share of these images, decoded: (n, 3, H, W) uint8, and (n,) their places.

    Args:
        shards: The set.
        numbers: (N,) sample numbers of all ranks' images.
        height_width: Of the center crop in pixels.
        share: Which part is read.
        values: How values of more than 8 bits are shown.

    Raises:
        UserError: An image cannot be read.
    """
    # As many on every rank, a few of them twice: at ZeRO-3 all ranks make the same passes.
    count = -(-len(numbers) // share.world_size)
    places = (torch.arange(count) * share.world_size + share.rank) % len(numbers)
    maker = EvaluationBatches(shards, CenterCrop(height_width, CROP_RATIO), values)
    mine = numbers[places.numpy()].tolist()
    memory = torch.empty(maker.num_bytes(len(mine)), dtype=torch.uint8)
    loaded = maker.make(mine, memory)
    if loaded.failure is not None:
        raise loaded.failure
    return loaded.batch.images, places
