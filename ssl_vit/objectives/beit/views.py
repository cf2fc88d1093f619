"""What BEiT sees of an image: a crop, the same crop for the tokenizer, and hidden blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Crop
from ssl_vit.data.views import Sample
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import blank_patches
from ssl_vit.objectives.beit.config import BeitConfig
from ssl_vit.objectives.color_jitter import apply_color_factors
from ssl_vit.objectives.masking import block_hidden
from ssl_vit.objectives.one_crop.pairs import PairedCrop, PairedViews


class BeitCrop(NamedTuple):
    """Everything that is random in one sample."""

    pair: PairedCrop
    """The crop and its mask."""
    jitter: np.ndarray
    """(3,) float32 factors of brightness, contrast and saturation."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """The same box once, or twice for two sizes."""
        return self.pair.crops

    @property
    def hidden(self) -> np.ndarray:
        """(N,) bool, true where hidden."""
        return self.pair.hidden


class BeitBatch(NamedTuple):
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    given_images: Tensor
    """(B, 3, h, w) uint8, the same crops for the tokenizer; empty if they are ``images``."""
    hidden: Tensor
    """(B, N) bool, true where hidden; the same number in every row."""
    jitter: Tensor
    """(B, 3) float32 factors of brightness, contrast and saturation."""
    numbers: Tensor
    """(B,) int64 sample numbers."""


class BeitViews(PairedViews):
    """A crop, flips, jittered colors, and blocks of hidden patches."""

    def __init__(self, config: BeitConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.min_block_patches, self.strength = config.min_block_patches, config.color_jitter

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`."""
        return block_hidden(self.grid, self.num_hidden, rng, self.min_block_patches)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> BeitCrop:  # type: ignore[override]
        """See :class:`OneCropViews`."""
        pair = super().draw(height, width, rng)
        jitter = 1 + self.strength * (2 * rng.random(3) - 1)
        return BeitCrop(pair, jitter.astype(np.float32))

    def collate(  # type: ignore[override] - another batch
        self, crops: Sequence[Tensor], draws: Sequence[BeitCrop], samples: Sequence[Sample]
    ) -> BeitBatch:
        """Both sizes of the crop of each image, with its mask and colors."""
        both = super().collate(crops, [draw.pair for draw in draws], samples)
        jitter = torch.from_numpy(np.stack([draw.jitter for draw in draws]))
        return BeitBatch(both.images, both.given_images, both.hidden, jitter, both.numbers)

    def show(self, crops: Sequence[Tensor], draw: BeitCrop) -> list[Tensor]:  # type: ignore[override]
        """The crop in its colors, and with hidden patches black."""
        jitter = torch.from_numpy(draw.jitter).unsqueeze(0)
        image = apply_color_factors(crops[0][:1], jitter).round().to(torch.uint8)
        hidden = torch.from_numpy(draw.hidden).unsqueeze(0)
        return [image[0], blank_patches(image, hidden, self.stride)[0]]
