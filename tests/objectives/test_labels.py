"""Views receive the label of each image, and self-supervised objectives ignore it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.data.config import DataConfig
from ssl_vit.data.crops import Box, Crop
from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.order import SampleRef
from ssl_vit.data.sources import open_shards
from ssl_vit.data.views import Sample
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import DinoConfig, MaeConfig, MaskFeatConfig, SimMimConfig
from tests.synthetic import write_shards

BACKBONE = VitConfig(width=16, depth=1, heads=2, patch_size=8, image_size=32)
DINO = DinoConfig(prototypes=16, bottleneck=8, head_hidden=16, local_crops=2, local_size=16)


@pytest.mark.parametrize(
    "config",
    [
        MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2),
        SimMimConfig(mask_unit=16),
        MaskFeatConfig(min_block_patches=2),
        DINO,
    ],
    ids=["mae", "simmim", "maskfeat", "dino"],
)
def test_permuted_labels_change_no_loss(config: Any) -> None:
    views, rng = build_views(config, BACKBONE), np.random.default_rng(0)
    draws = [views.draw(48, 40, rng) for _ in range(4)]
    crops = [
        torch.from_numpy(rng.integers(0, 256, (count, 4, 3, *size), dtype=np.uint8))
        for count, size in views.crop_sizes
    ]
    losses = []
    for labels in ((0, 1, 2, 3), (3, 0, 2, 1), (-1, -1, -1, -1)):
        torch.manual_seed(0)
        objective = build_objective(config, build_backbone(BACKBONE), DataConfig(), 10)
        samples = [Sample(number, label) for number, label in enumerate(labels)]
        losses.append(objective(views.collate(crops, draws, samples), 0).loss.item())
    assert losses[0] == losses[1] == losses[2]


class Labels(NamedTuple):
    crops: tuple[Crop]


class LabelViews:
    """Views that collate the samples themselves."""

    crop_sizes = ((1, (8, 8)),)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Labels:
        return Labels((Crop(Box(0, 0, height, width), (8, 8)),))

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[Any], samples: Sequence[Sample]
    ) -> Any:
        return samples

    def show(self, crops: Sequence[Tensor], draw: Any) -> list[Tensor]:
        return []


def test_views_are_handed_the_labels_of_the_shards(tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path, per_class=3))
    maker = TrainingBatches(shards, LabelViews(), seed=0)
    numbers = (5, 0, 3, 1, 2, 4)
    refs = [SampleRef(number, 0) for number in numbers]
    loaded = maker.make(refs, torch.empty(maker.num_bytes(6), dtype=torch.uint8))
    assert loaded.batch == [Sample(number, int(shards.labels[number])) for number in numbers]
    assert {sample.label for sample in loaded.batch} == {0, 1}
