"""What classification sees of an image: one augmented crop, how it is mixed with another, and the
label. All that is random is drawn from the sample's own generator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Crop, crop_aspect, random_resized_crop_box
from ssl_vit.data.views import Sample
from ssl_vit.models.augment import Augment
from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.classification.config import ClassificationConfig
from ssl_vit.objectives.masking import random_hidden

# B images, H × W pixels, N patches.


class Mix(NamedTuple):
    """How an image is mixed with another."""

    share: float
    """Share of the image itself, in [0, 1]; 1: not mixed."""
    box: tuple[int, int, int, int]
    """(top, bottom, left, right) pixels that CutMix takes from the other image; empty for mixup."""

    @property
    def is_cut(self) -> bool:
        """Whether a box is taken from the other image; otherwise all pixels are mixed."""
        top, bottom, left, right = self.box
        return bottom > top and right > left


class LabeledCrop(NamedTuple):
    """Everything that is random in one sample."""

    crops: tuple[Crop]
    """The only crop."""
    key: int
    """Seed of its augmentation, from 0 to 2³²."""
    mix: Mix
    hidden: np.ndarray
    """(N,) bool, true for patches that are dropped."""


class LabeledBatch(NamedTuple):
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64 class numbers."""
    shares: Tensor
    """(B,) float32, the share of each image in its mix."""
    boxes: Tensor
    """(B, 4) int64 (top, bottom, left, right) of CutMix; all 0 for mixup."""
    hidden: Tensor
    """(B, N) bool, true for patches that are dropped; the same number in every row."""
    numbers: Tensor
    """(B,) int64 sample numbers."""


class LabeledViews:
    """A random crop, flips, timm's augmentations, and a share of another image."""

    def __init__(self, config: ClassificationConfig, backbone: BackboneConfig) -> None:
        self.config, self.crop_sizes = config, config.crops(backbone)
        self.num_patches, self.num_dropped = backbone.num_patches, config.num_dropped(backbone)
        self.augment = Augment(config.augment, config.random_erasing, backbone.height_width)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> LabeledCrop:
        """Crop, flips, augmentation, mix and dropped patches for an image of this size."""
        config, (_, size) = self.config, self.crop_sizes[0]
        area = (config.min_crop_area, 1.0)
        box = random_resized_crop_box(height, width, area, crop_aspect(size), rng)
        across, down = rng.random() < config.horizontal_flip, rng.random() < config.vertical_flip
        key = int(rng.random() * 2**32)
        mix = draw_mix(config, size, rng)
        hidden = np.zeros(self.num_patches, dtype=bool)
        if self.num_dropped:
            hidden = random_hidden(self.num_patches, self.num_dropped, rng)
        return LabeledCrop((Crop(box, size, across, down),), key, mix, hidden)

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[LabeledCrop], samples: Sequence[Sample]
    ) -> LabeledBatch:
        """The augmented crop of each image with its label."""
        images = crops[0][0]
        if images.device.type != "meta":  # when a network is only counted
            for image, draw in zip(images, draws, strict=True):
                self.augment(image, draw.key)
        return LabeledBatch(
            images=images,
            labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            shares=torch.tensor([draw.mix.share for draw in draws]),
            boxes=torch.tensor([draw.mix.box for draw in draws], dtype=torch.int64),
            hidden=torch.from_numpy(np.stack([draw.hidden for draw in draws])),
            numbers=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        )

    def show(self, crops: Sequence[Tensor], draw: LabeledCrop) -> list[Tensor]:
        """The augmented crop, before it is mixed.

        Args:
            crops: One tensor, (1, 3, H, W) uint8, of one image.
            draw: The crop's augmentation.
        """
        image = crops[0][0].clone()
        self.augment(image, draw.key)
        return [image]


def draw_mix(config: ClassificationConfig, size: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw how an image of (height, width) pixels is mixed.

    The box is timm's: a share of the image's area around a random center, cut off at the border;
    the share of the image is corrected by what remains of the box.
    """
    # Always all of these, so that switching one off leaves the others as they are.
    is_cut, down, across = rng.random() < 0.5, rng.random(), rng.random()
    if not (config.mixup and config.cutmix):
        is_cut = bool(config.cutmix)
    alpha = config.cutmix if is_cut else config.mixup
    if not alpha:
        return Mix(1.0, (0, 0, 0, 0))
    share = draw_beta(alpha, rng)
    if not is_cut:
        return Mix(share, (0, 0, 0, 0))
    height, width = size
    tall, wide = (int(side * (1 - share) ** 0.5) for side in size)
    middle, center = int(down * height), int(across * width)
    top, bottom = max(middle - tall // 2, 0), min(middle + (tall + 1) // 2, height)
    left, right = max(center - wide // 2, 0), min(center + (wide + 1) // 2, width)
    if bottom <= top or right <= left:
        return Mix(1.0, (0, 0, 0, 0))
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(share, (top, bottom, left, right))


def draw_beta(alpha: float, rng: np.random.Generator) -> float:
    """A number from Beta(α, α), by `rng.random()` alone.

    Source: Jöhnk 1964, the rejection method; numpy does not promise the stream of its own.
    """
    while True:
        # In logarithms: a small α makes powers that are 0 in binary.
        first, second = (np.log(max(rng.random(), 1e-300)) / alpha for _ in range(2))
        most = max(first, second)
        total = most + np.log(np.exp(first - most) + np.exp(second - most))
        if total <= 0:
            return float(np.exp(first - total))
