"""The stored values that are black and white in images of more than 8 bits.

A file of 12-bit microscopy, CT numbers or reflectances does not state the range that its values
use. One range for a whole set, kept in its index, makes a value the same gray in all its images.
Images of 8 bits have no range: their pixels stay as they are. No torch here.
"""

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from ssl_vit.errors import UserError

PERCENTILES = (0.1, 99.9)
"""Percentiles of a set's sampled values that become black and white unless a range is given."""

_SAME = 3e-6  # relative difference of two ways to write one value

# Values converted at a time: a copy in float64 of a whole image could be eight times its size.
_BLOCK = 2**20


@dataclass(frozen=True)
class ValueRange:
    """Linear mapping of stored values to 8 bits, clipped."""

    low: float
    """The value that becomes 0."""
    high: float
    """The value that becomes 255; above ``low``."""
    no_data: float | None = None
    """The value of pixels without data, which become 0; None if there is none."""
    num_images: int = field(default=0, compare=False)
    """Number of images that the range was measured on; 0 if it was given."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the value range {self.low:g} to {self.high:g} is empty")

    def to_bytes(self, values: np.ndarray, no_data: float | None = None) -> np.ndarray:
        """8-bit pixels.

        Args:
            values: Any shape and any real type. NaN becomes 0, infinities are clipped.
            no_data: A further no-data value, declared by the file itself.

        Returns:
            uint8 of the same shape.
        """
        result = np.empty(values.size, dtype=np.uint8)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            if values.dtype in (np.uint16, np.int16):
                shown = _table(self, values.dtype.name, no_data).take(part.view(np.uint16))
            else:
                shown = self.convert(part, no_data)
            result[start : start + _BLOCK] = shown
        return result.reshape(values.shape)

    def convert(self, values: np.ndarray, no_data: float | None) -> np.ndarray:
        """:meth:`to_bytes` of few values, computed in float64."""
        exact = values.astype(np.float64)
        scaled = (exact - self.low) * (255.0 / (self.high - self.low))
        missing = np.isnan(exact)
        for absent in (self.no_data, no_data):
            if absent is not None:
                missing |= is_no_data(values, absent)
        scaled[missing] = 0.0
        return scaled.clip(0, 255).round().astype(np.uint8)

    def describe(self) -> str:
        """A line for the user: which values are black and white, and where that is from."""
        low, high = PERCENTILES
        how = "as given"
        if self.num_images:
            images = "image" if self.num_images == 1 else "images"
            how = f"{low:g} and {high:g} percentiles of {self.num_images:,} sampled {images}"
        return f"values {self} become 0 … 255 ({how})"

    def __str__(self) -> str:
        without = "" if self.no_data is None else f" ({format_value(self.no_data)} is no data)"
        return f"{format_value(self.low)} … {format_value(self.high)}{without}"


@functools.lru_cache(maxsize=8)
def _table(values: ValueRange, dtype: str, no_data: float | None) -> np.ndarray:
    """(65536,) uint8, the pixel of every 16-bit value."""
    return values.convert(np.arange(2**16, dtype=np.uint16).view(dtype), no_data)


def parse_range(given: tuple[float, float] | None) -> ValueRange | None:
    """The range of `--value-range LOW HIGH`; None if it is not given.

    Raises:
        UserError: An empty range.
    """
    if given is None:
        return None
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"--value-range {low:g} {high:g} is empty",
            "give the value of black, then that of white",
        )
    return ValueRange(low, high)


def parse_no_data(given: float | None) -> float | None:
    """The value of `--no-data VALUE`; None if it is not given, or NaN, which is never data.

    Raises:
        UserError: It is infinite.
    """
    if given is None or math.isnan(given):
        return None
    if math.isinf(given):
        raise UserError(
            f"--no-data {given:g} is not a finite value",
            "leave it out: infinite values become black or white anyway",
        )
    return given


def is_no_data(values: np.ndarray, no_data: float) -> np.ndarray:
    """Boolean of the same shape: which values equal the no-data value."""
    if values.dtype.kind == "f":
        # A file has the nearest float32 to the declared decimal, often of six digits.
        near = np.abs(values.astype(np.float64) - no_data) <= _SAME * abs(no_data)
        return near & np.isfinite(values)
    return values == no_data


def format_value(value: float) -> str:
    """A stored value for messages: "4,095", "0.0213", "-3.4e+38"."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"
