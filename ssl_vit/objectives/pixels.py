"""Normalization of pixels. Images stay uint8 until they are on the device."""

import torch
from torch import Tensor, nn


class PixelScale(nn.Module):
    """(x / 255 − mean) / std, and back.

    Args:
        mean, std: Mean and standard deviation per channel, of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or float32 in [0, 255], in any memory format → float32, channels
        first in memory.
        """
        # One pass converts the type and the loader's channels-last layout.
        planes = images.to(torch.float32, memory_format=torch.contiguous_format)
        return (planes - self.mean) / self.std

    def back(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalized → uint8."""
        return (images * self.std + self.mean).round().clamp(0, 255).to(torch.uint8)
