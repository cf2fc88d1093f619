"""One crop per image with hidden patches: drawing it, and collating micro-batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Crop, crop_aspect, random_resized_crop_box
from ssl_vit.data.views import Sample
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import blank_patches
from ssl_vit.objectives.masking import random_hidden
from ssl_vit.objectives.one_crop.config import OneCropConfig


class MaskedCrop(NamedTuple):
    """Everything that is random in one sample."""

    crops: tuple[Crop]
    """The only crop."""
    hidden: np.ndarray
    """(N,) bool, true where hidden."""


class MaskedBatch(NamedTuple):
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    hidden: Tensor
    """(B, N) bool, true where hidden; the same number in every row."""
    numbers: Tensor
    """(B,) int64 sample numbers."""


class OneCropViews(ABC):
    """A random crop, flips and the mask, all from the sample's own random generator."""

    def __init__(self, config: OneCropConfig, backbone: BackboneConfig) -> None:
        self.config, self.stride, self.grid = config, backbone.stride, backbone.grid
        self.crop_sizes = config.crops(backbone)
        self.num_hidden = config.num_hidden(backbone)

    @abstractmethod
    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """(N,) bool with ``num_hidden`` true."""

    def draw(self, height: int, width: int, rng: np.random.Generator) -> MaskedCrop:
        """Crop, flips and mask for an image of this size."""
        config, (_, size) = self.config, self.crop_sizes[0]
        area = (config.min_crop_area, config.max_crop_area)
        box = random_resized_crop_box(height, width, area, crop_aspect(size), rng)
        across, down = rng.random() < config.horizontal_flip, rng.random() < config.vertical_flip
        return MaskedCrop((Crop(box, size, across, down),), self.draw_hidden(rng))

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[MaskedCrop], samples: Sequence[Sample]
    ) -> MaskedBatch:
        """The only crop of each image, with its mask."""
        hidden = torch.from_numpy(np.stack([draw.hidden for draw in draws]))
        numbers = torch.tensor([sample.number for sample in samples], dtype=torch.int64)
        return MaskedBatch(crops[0][0], hidden, numbers)

    def show(self, crops: Sequence[Tensor], draw: MaskedCrop) -> list[Tensor]:
        """The crop, and the crop with hidden patches black.

        Args:
            crops: One tensor, (1, 3, H, W) uint8, of one image.
            draw: The crop's mask.
        """
        hidden = torch.from_numpy(draw.hidden).unsqueeze(0)
        return [crops[0][0], blank_patches(crops[0], hidden, self.stride)[0]]


class RandomPatchViews(OneCropViews):
    """Each set of patches is equally likely to be hidden."""

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`."""
        return random_hidden(self.grid[0] * self.grid[1], self.num_hidden, rng)
