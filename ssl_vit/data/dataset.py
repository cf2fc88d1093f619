"""Map-style datasets over a shard set: one item is read, decoded and handed to the views."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from ssl_vit.data.decode import decode_image
from ssl_vit.data.order import SampleRef, sample_rng
from ssl_vit.data.shards import ShardSet


class Views(Protocol):
    """What an objective sees of an image. Runs in data workers, so it must pickle."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Any:
        """One sample from an (H, W, 3) uint8 image; all its randomness is drawn from ``rng``."""
        ...

    def collate(self, samples: Sequence[Any], numbers: Sequence[int]) -> Any:
        """One batch from samples and their numbers in the shard set."""
        ...


class TrainingDataset(Dataset[tuple[int, Any]]):
    """Samples for training, addressed by (number, epoch) so that their randomness is their own."""

    def __init__(self, shards: ShardSet, views: Views, seed: int) -> None:
        self.shards, self.views, self.seed = shards, views, seed

    def __getitem__(self, ref: SampleRef) -> tuple[int, Any]:
        image = read_image(self.shards, ref.number)
        return ref.number, self.views(image, sample_rng(self.seed, ref))

    def collate(self, items: Sequence[tuple[int, Any]]) -> Any:
        """Hand the samples of a micro-batch to the views' own collate."""
        return self.views.collate([sample for _, sample in items], [number for number, _ in items])


class EvaluationDataset(Dataset[Any]):
    """The transformed image of every sample, in index order; labels are ``shards.labels``."""

    def __init__(self, shards: ShardSet, transform: Callable[[np.ndarray], Any]) -> None:
        self.shards, self.transform = shards, transform

    def __len__(self) -> int:
        return self.shards.num_samples

    def __getitem__(self, number: int) -> Any:
        return self.transform(read_image(self.shards, number))


def read_image(shards: ShardSet, number: int) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one sample; an error names its key and shard."""
    try:
        return decode_image(shards.read(number))
    except (ValueError, OSError) as error:
        shard = shards.shards[shards.shard_of(number)].name
        raise ValueError(
            f"sample {shards.key(number)} in shard {shards.folder / shard} "
            f"cannot be decoded: {error}"
        ) from error
