"""One crop per image, rendered at two sizes: for the trained network and for a frozen one whose
patches have another size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Crop
from ssl_vit.data.views import Sample
from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.one_crop.config import OneCropConfig
from ssl_vit.objectives.one_crop.views import MaskedCrop, OneCropViews


class PairedCrop(NamedTuple):
    """Everything that is random in one sample."""

    crops: tuple[Crop, ...]
    """The same box once, or twice for two sizes."""
    hidden: np.ndarray
    """(N,) bool, true where hidden."""
    key: int
    """Random, from 0 to 2⁵³."""


class PairedBatch(NamedTuple):
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    given_images: Tensor
    """(B, 3, h, w) uint8, the same crops for the frozen network; empty if they are ``images``."""
    hidden: Tensor
    """(B, N) bool, true where hidden; the same number in every row."""
    keys: Tensor
    """(B,) int64, random and different for every image of an epoch."""
    numbers: Tensor
    """(B,) int64 sample numbers."""

    @property
    def given(self) -> Tensor:
        """(B, 3, h, w) uint8, what the frozen network sees."""
        return self.given_images if self.given_images.numel() else self.images


class PairedViews(OneCropViews):
    """A crop, flips and a mask; a second size of the same crop where the frozen network's patches
    have another size than the backbone's.
    """

    def __init__(self, config: OneCropConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.sizes = [size for _, size in self.crop_sizes]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> PairedCrop:  # type: ignore[override]
        """See :class:`OneCropViews`."""
        drawn: MaskedCrop = super().draw(height, width, rng)
        (crop,) = drawn.crops
        crops = tuple(crop._replace(size=size) for size in self.sizes)
        return PairedCrop(crops, drawn.hidden, int(rng.random() * 2**53))

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`; nothing is hidden."""
        return np.zeros(self.grid[0] * self.grid[1], dtype=bool)

    def collate(  # type: ignore[override] - another batch
        self, crops: Sequence[Tensor], draws: Sequence[PairedCrop], samples: Sequence[Sample]
    ) -> PairedBatch:
        """Both sizes of the crop of each image, with its mask."""
        return PairedBatch(
            images=crops[0][0],
            given_images=crops[1][0] if len(self.sizes) > 1 else crops[0].new_empty(0),
            hidden=torch.from_numpy(np.stack([draw.hidden for draw in draws])),
            keys=torch.tensor([draw.key for draw in draws], dtype=torch.int64),
            numbers=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        )
