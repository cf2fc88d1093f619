"""Random crops and flips on uint8 images. Random choices come from the sample's own generator.

Only `rng.random()` is used: its bits are fixed by the algorithm, so crops are the same on every
machine.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_crop_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a crop of random area and aspect ratio.

    Args:
        height, width: Of the image, in pixels.
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest width over height, drawn log-uniformly.
        rng: The sample's randomness.

    Source: Szegedy et al. 2014, arXiv 1409.4842, section 6; ten tries and the central fallback are
        torchvision's.
    """
    for _ in range(10):
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


def crop_and_resize(image: np.ndarray, box: Box, size: int) -> Tensor:
    """Cut a box out and scale it, antialiased bicubic in integer arithmetic.

    Args:
        image: (H, W, 3) uint8.
        box: Inside the image.
        size: Pixels a side of the result.

    Returns:
        (3, size, size) uint8.
    """
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    # (1, 3, h, w) with the strides of the (H, W, 3) original: channels-last, the fast path for
    # uint8.
    pixels = torch.from_numpy(cut).permute(2, 0, 1).unsqueeze(0)
    if pixels.shape[-2:] == (size, size):
        return pixels[0]
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0]


def resize_and_center_crop(image: np.ndarray, size: int, shorter_side: int) -> Tensor:
    """The usual test transform: scale the shorter side, cut the centre.

    Args:
        image: (H, W, 3) uint8.
        size: Pixels a side of the result.
        shorter_side: Length the image's shorter side is scaled to; 256 for 224 in the literature.

    Returns:
        (3, size, size) uint8.
    """
    height, width = image.shape[:2]
    # Cutting first and scaling after is less work and differs at the outermost pixels only.
    side = max(1, round(min(height, width) * size / shorter_side))
    box = Box((height - side) // 2, (width - side) // 2, side, side)
    return crop_and_resize(image, box, size)
