"""Crops: where a view of an image lies, drawn at random or in the center. `render.py` makes the
pixels.

Random choices come from the sample's own generator, by `rng.random()` alone: its bits are fixed by
the algorithm, so crops are the same on every machine.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
    size: tuple[int, int]
    """(height, width) of the result in pixels."""
    across: bool = False
    """Mirrored left to right."""
    down: bool = False
    """Mirrored top to bottom."""


def crop_aspect(size: tuple[int, int]) -> tuple[float, float]:
    """Smallest and largest width over height of a random crop that becomes (height, width): 3/4 to
    4/3 of its own, as is usual for squares.
    """
    own = size[1] / size[0]
    return 3 / 4 * own, 4 / 3 * own


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
    """The usual test transform: scale the image until it covers a little more than the result, cut
    the center.
    """

    size: tuple[int, int]
    """(height, width) of the result in pixels."""
    ratio: float = 0.875
    """The result's sides over those that the image is scaled to cover; 224/256 in the literature.
    """

    def __call__(self, height: int, width: int) -> Crop:
        """The crop of an image of this size."""
        # Cutting first and scaling after is less work and differs at the outermost pixels only.
        covered = [round(side / self.ratio) for side in self.size]
        is_high = height * covered[1] >= width * covered[0]
        length, scaled = (width, covered[1]) if is_high else (height, covered[0])
        down, across = (max(1, round(length * side / scaled)) for side in self.size)
        return Crop(Box((height - down) // 2, (width - across) // 2, down, across), self.size)
