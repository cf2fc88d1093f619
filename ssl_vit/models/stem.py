"""Stems, from pixels to patch tokens: one large convolution, or several overlapping ones."""

from itertools import pairwise
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.config import CONV_STEM_PATCHES, VitConfig, stem_channels
from ssl_vit.models.patches import pick_patches


class PatchStem(nn.Module):
    """One linear map of non-overlapping patches (Dosovitskiy et al. 2020, section 3.1)."""

    overlaps = False
    channels_last = False
    """Whether images are converted to channels last in memory."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor, indices: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) → (B, N, D), row-major over the grid; or (B, K, D), the patches at (B, K)
        int64 ``indices`` only.
        """
        if indices is not None:
            # Beside each other, as images of one row of patches.
            picked = pick_patches(images, self.proj.kernel_size[0], indices)
            images = picked.permute(0, 2, 3, 1, 4).flatten(3)
        return self.proj(_laid_out(images, self.channels_last)).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """3×3 stride-2 convolutions with doubling channels, then a 1×1 convolution.

    Each token depends on pixels of neighboring patches, so a masked objective must blank hidden
    patches first (``VisionTransformer.embed`` does). The paper normalizes with BatchNorm, which
    mixes samples; here each position is normalized over its own channels, which mixes neither
    samples nor positions.

    Args:
        patch_size: 2, 4, 8, 16 or 32: one halving per convolution.
        width: D.

    Source: Xiao et al. 2021, arXiv 2106.14881, section 3 and table 4 (which also drops one
        transformer block; here the depth stays as configured).
    """

    overlaps = True
    channels_last = False
    """Whether images are converted to channels last in memory, which suits the norms in between."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        if patch_size not in CONV_STEM_PATCHES:
            raise ValueError(f"a conv stem makes patches of {CONV_STEM_PATCHES}, not {patch_size}")
        channels = stem_channels(patch_size, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
                ChannelNorm(after),
                nn.ReLU(inplace=True),
            ]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels[-1], width, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, D), row-major over the grid."""
        maps = self.convs(_laid_out(images, self.channels_last))
        return self.proj(maps).flatten(2).transpose(1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        channels_last = input.permute(0, 2, 3, 1)
        normed = F.layer_norm(
            channels_last, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)


def _laid_out(images: Tensor, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


Stem = PatchStem | ConvStem


def build_stem(config: VitConfig) -> Stem:
    """The stem that a config selects."""
    match config.stem:
        case "patch":
            return PatchStem(config.patch_size, config.width)
        case "conv":
            return ConvStem(config.patch_size, config.width)
    assert_never(config.stem)
