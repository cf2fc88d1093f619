"""Stored values of images that Pillow would round to 8 bits or misread, and their conversion to
pixels.
"""

from typing import NamedTuple

import numpy as np

from ssl_vit.data.values import ValueRange, is_no_data

# Pixels converted at a time: a float copy of a whole image could be eight times its size.
_BLOCK = 2**18


class ImageFacts(NamedTuple):
    """The facts in an image file's header."""

    format: str
    height: int
    """Pixels, as stored."""
    width: int
    channels: str
    """For messages: "gray", "RGB", "palette", "CMYK", …"""
    depth: str
    """Type of a stored value, for messages: "8-bit", "16-bit signed", "32-bit float", …"""
    is_deep: bool = False
    """Whether it has more than 8 bits and is shown by a value range."""
    is_transparent: bool = False
    """Whether it has an opacity channel or a transparent color; composited on white."""
    num_left_out: int = 0
    """Number of channels beyond RGB and opacity."""
    num_pages: int = 1
    """Number of images in the file; the first is read."""


class Raster(NamedTuple):
    """One decoded image, upright or not as stored, before its values become 8 bits."""

    values: np.ndarray
    """(H, W) gray or (H, W, 3) RGB, of any real type."""
    depth: str
    """As in :class:`ImageFacts`."""
    opacity: np.ndarray | None = None
    """(H, W), of any real type."""
    opaque: float = 1.0
    """The opacity value of an opaque pixel."""
    is_premultiplied: bool = False
    """Whether the values were multiplied by the opacity."""
    orientation: int = 1
    """The EXIF orientation, 1 to 8."""
    no_data: float | None = None
    """The value of pixels without data, if the file declares it."""
    is_inverted: bool = False
    """Whether low values are white in the file; here they are turned around."""

    def measured(self) -> np.ndarray:
        """(N,) finite values that carry data."""
        flat = self.values.reshape(-1)
        if flat.dtype.kind == "f":
            flat = flat[np.isfinite(flat)]
        return flat if self.no_data is None else flat[~is_no_data(flat, self.no_data)]

    def to_rgb(self, values: ValueRange | None) -> np.ndarray:
        """(H, W, 3) uint8, composited on white, not yet turned.

        Raises:
            ValueError: More than 8 bits, and no range.
        """
        if self.values.dtype != np.uint8 and values is None:
            raise ValueError(
                f"{self.depth} values without a value range, which says which of them are black "
                "and white: make the index again, or set one"
            )
        height, width = self.values.shape[:2]
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        rows = max(1, _BLOCK // width)
        for top in range(0, height, rows):
            part = slice(top, top + rows)
            shown = self._show(part, values)
            for channel in range(3):  # numpy is five times slower at spreading one over three
                pixels[part, :, channel] = shown[:, :, channel % shown.shape[2]]
        return pixels

    def _show(self, rows: slice, values: ValueRange | None) -> np.ndarray:
        """(h, W, 1 or 3) uint8 of some rows."""
        pixels = self.values[rows]
        if values is not None and pixels.dtype != np.uint8:
            pixels = values.to_bytes(pixels, self.no_data)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.opacity is None:
            return pixels
        opacity = np.nan_to_num(self.opacity[rows, :, None].astype(np.float32) / self.opaque)
        opacity = opacity.clip(0, 1)
        shown = pixels if self.is_premultiplied else pixels * opacity
        return (shown + 255.0 * (1.0 - opacity)).round().clip(0, 255).astype(np.uint8)
