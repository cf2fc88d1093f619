"""Per-channel mean and standard deviation of a set's pixels, from an even sample of its images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssl_vit.data.decode import Picture, largest_shrink
from ssl_vit.data.index_file import Statistics

# Images are measured at about the size of crops in training; at full size the noise of a
# 12-megapixel photograph would count.
_SHORTER_SIDE = 160


@dataclass(frozen=True)
class PixelSums:
    """Sums of per-image means, in which every image has the same weight."""

    num_images: int = 0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Sum of the means of pixels in [0, 1]."""
    square: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Sum of the means of their squares."""

    def add(self, pixels: np.ndarray) -> "PixelSums":
        """The sums with one more image, (H, W, 3) uint8."""
        # Counting levels is exact, and faster than converting every pixel.
        counts = np.array(Image.fromarray(pixels).histogram(), dtype=np.float64).reshape(3, 256)
        counts /= pixels.shape[0] * pixels.shape[1]
        levels = np.arange(256) / 255
        means, squares = counts @ levels, counts @ levels**2
        return self + PixelSums(1, tuple(means.tolist()), tuple(squares.tolist()))

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.num_images + other.num_images,
            tuple(a + b for a, b in zip(self.mean, other.mean, strict=True)),
            tuple(a + b for a, b in zip(self.square, other.square, strict=True)),
        )

    def as_array(self) -> np.ndarray:
        """The sums as (7,) float64."""
        return np.array([self.num_images, *self.mean, *self.square], dtype=np.float64)

    @classmethod
    def of_array(cls, values: np.ndarray) -> "PixelSums":
        """The inverse of :meth:`as_array`."""
        numbers = values.tolist()
        return cls(int(numbers[0]), tuple(numbers[1:4]), tuple(numbers[4:]))

    def statistics(self) -> Statistics | None:
        """Mean and standard deviation; None if no image was measured."""
        if not self.num_images:
            return None
        mean = [value / self.num_images for value in self.mean]
        square = [value / self.num_images for value in self.square]
        std = [max(s - m * m, 0.0) ** 0.5 for m, s in zip(mean, square, strict=True)]
        # Six digits: sums of the same numbers in another order differ in the last.
        r, g, b = ((round(m, 6), round(s, 6)) for m, s in zip(mean, std, strict=True))
        return Statistics((r[0], g[0], b[0]), (r[1], g[1], b[1]), self.num_images)


def add_all(sums: Iterable[PixelSums]) -> PixelSums:
    """The sums of several shards, in their order."""
    total = PixelSums()
    for each in sums:
        total = total + each
    return total


def pixels_to_measure(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8, at about the size of crops in training."""
    return picture.pixels(largest_shrink(min(picture.height, picture.width), _SHORTER_SIDE))
