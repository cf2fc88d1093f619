"""Random crops and flips on uint8 images. Random choices come from the sample's own generator.

Only `rng.random()` is used: its bits are fixed by the algorithm, so crops are the same on every
machine. Drawing a `Crop` is separate from making its pixels (`render`), so that an image is decoded
once for all its crops, at the smallest size that serves them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.decode import Picture, largest_shrink

# A JPEG is shrunk while it is decoded only as far as its crops stay this much larger than their
# results; the antialiased resize does the rest. At 2, Pillow's own choice for thumbnails, the
# result differs from that of a full decode by noise of about 50 dB.
_LEAST_EXCESS = 2.0

_TRIES = 10


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


class Crop(NamedTuple):
    """One view of an image: its box, the size it is resized to, and whether it is mirrored."""

    box: Box
    """In pixels of the upright image."""
    size: int
    """Side length of the result in pixels."""
    across: bool = False
    """Mirrored left to right."""
    down: bool = False
    """Mirrored top to bottom."""


def random_resized_crop_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a crop of random area and aspect ratio.

    Args:
        height, width: Size of the image in pixels.
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest width over height, drawn log-uniformly.
        rng: The sample's randomness.

    Source: Szegedy et al. 2014, arXiv 1409.4842, section 6; ten tries and the central fallback are
        torchvision's.
    """
    for _ in range(_TRIES):
        target = height * width * (area[0] + (area[1] - area[0]) * rng.random())
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + (high - low) * rng.random())
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.random() * (height - box_height + 1))
            left = int(rng.random() * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


@dataclass(frozen=True)
class CenterCrop:
    """The usual test transform: scale the shorter side, cut the center."""

    size: int
    """S, the side length of the result in pixels."""
    ratio: float = 0.875
    """S over the length that the image's shorter side is scaled to; 224/256 in the literature."""

    def __call__(self, height: int, width: int) -> Crop:
        """The crop of an image of this size."""
        # Cutting first and scaling after is less work and differs at the outermost pixels only.
        side = max(1, round(min(height, width) * self.size / round(self.size / self.ratio)))
        return Crop(Box((height - side) // 2, (width - side) // 2, side, side), self.size)


def render(picture: Picture, crops: Sequence[Crop], into: Sequence[Tensor]) -> None:
    """Decode an image once and make all its crops.

    Args:
        crops: Boxes inside the image.
        into: For each crop (S, S, 3) uint8, contiguous; filled.

    Raises:
        ValueError: The image is damaged.
    """
    shrink = min(
        largest_shrink(min(crop.box.height, crop.box.width), _LEAST_EXCESS * crop.size)
        for crop in crops
    )
    pixels = picture.pixels(shrink, max(crop.box.top + crop.box.height for crop in crops))
    if pixels.shape[1] == picture.width:
        shrink = 1  # not a JPEG, or one that Pillow decoded
    for crop, target in zip(crops, into, strict=True):
        resize_into(pixels, _shrunk(crop.box, shrink, *pixels.shape[:2]), target)
        mirrored = [axis for axis, is_so in ((0, crop.down), (1, crop.across)) if is_so]
        if mirrored:
            # Channels first by strides only: torch has a fast path for this layout, as in resizing.
            planes = target.permute(2, 0, 1)
            planes.copy_(planes.flip([axis + 1 for axis in mirrored]))


def resize_into(pixels: np.ndarray, box: Box, target: Tensor) -> None:
    """Cut a box out and scale it, antialiased bicubic in integer arithmetic.

    Args:
        pixels: (H, W, 3) uint8 with any strides.
        box: Inside the image.
        target: (S, S, 3) uint8, contiguous; filled.
    """
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # Turned images have negative strides, which torch does not support even on sides of 1.
    if min(part.strides) < 0 or not pixels.flags.c_contiguous:
        part = part.copy()
    cut = torch.from_numpy(part)
    if cut.shape == target.shape:
        target.copy_(cut)
        return
    # The operator behind F.interpolate, which cannot write into an existing tensor: a third of its
    # time is spent on turning its result into planes.
    torch.ops.aten._upsample_bicubic2d_aa.out(
        cut.permute(2, 0, 1).unsqueeze(0),
        target.shape[:2],
        False,
        None,
        None,
        out=target.permute(2, 0, 1).unsqueeze(0),
    )


def _shrunk(box: Box, by: int, height: int, width: int) -> Box:
    """The box in an image whose sides were divided: edges rounded to its pixels, never empty."""
    if by == 1:
        return box
    top, left = min(round(box.top / by), height - 1), min(round(box.left / by), width - 1)
    bottom = min(max(round((box.top + box.height) / by), top + 1), height)
    right = min(max(round((box.left + box.width) / by), left + 1), width)
    return Box(top, left, bottom - top, right - left)
