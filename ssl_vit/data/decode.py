"""Image bytes to upright RGB pixels: libjpeg-turbo for JPEG, tifffile and libpng for images of more
than 8 bits, Pillow for the rest.

A JPEG can be decoded at a half, a quarter or an eighth of its size for less work, which suits small
crops of a large photograph. The EXIF orientation is applied. Transparent images are composited on
white. Values of more than 8 bits are mapped to 8 by the value range of their set.
"""

import io
import warnings
from functools import cached_property

import numpy as np
import simplejpeg
from PIL import Image

from ssl_vit.data import jpeg, png, tiff
from ssl_vit.data.formats import is_heic, name_of_content, registered
from ssl_vit.data.limits import (
    MAX_PIXELS,
    TooLargeError,
    TooManyPixelsError,
    check_file_size,
    check_memory,
)
from ssl_vit.data.raster import ImageFacts, Raster
from ssl_vit.data.values import ValueRange
from ssl_vit.foreign import first_line

SHRINKS = (1, 2, 4, 8)
"""Divisors of a JPEG's sides that its decoder supports."""

_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)

# Bytes per pixel that Pillow's decoders hold beside the image, as measured.
_DECODERS = {"WEBP": 9, "AVIF": 8, "HEIF": 12}
# Pixels converted to RGB at a time: Pillow's copies would take four bytes per pixel each.
_BLOCK = 2**18


class Picture:
    """One encoded image. Its size is known at once, its pixels are decoded on demand.

    Args:
        data: The whole file.
        values: How values of more than 8 bits are shown; None: such an image is refused.

    Raises:
        ValueError: The bytes are not a supported image; a ``TooLargeError`` if decoding would take
            more memory or time than ``data.limits`` allows.
    """

    height: int
    """Height of the upright image in pixels."""
    width: int
    """Width of the upright image in pixels."""

    def __init__(self, data: bytes, values: ValueRange | None = None) -> None:
        check_file_size(len(data))
        self._data, self._values = data, values
        self._orientation = 1
        self._is_jpeg = data[:3] == jpeg.MAGIC and self._read_jpeg_header()
        if not self._is_jpeg:
            self.height, self.width = self._whole.shape[:2]

    @classmethod
    def of_pixels(cls, pixels: np.ndarray) -> "Picture":
        """A picture of decoded pixels, (H, W, 3) uint8."""
        picture = cls.__new__(cls)
        picture._is_jpeg, picture._whole = False, pixels
        picture.height, picture.width = pixels.shape[:2]
        return picture

    def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
        """Decode.

        Args:
            shrink: One of ``SHRINKS``; used for JPEGs only.
            rows: How many upper rows of the image are needed; more may be returned. None: all.

        Returns:
            (H, W, 3) uint8 RGB, upright, perhaps a view with other strides; a shrunk side is
            rounded up. Gray is repeated, transparency composited on white, more than 8 bits mapped
            by the value range.

        Raises:
            ValueError: The image is damaged.
        """
        if self._is_jpeg:
            size = (self.height, self.width)
            if self._orientation >= 5:
                size = (self.width, self.height)
            if rows is None or self._orientation != 1:
                rows = size[0]
            try:
                pixels = jpeg.decode(self._data, size, shrink, rows)
                return turn_upright(pixels, self._orientation)
            except ValueError as error:
                if jpeg.is_damage(error):
                    raise ValueError(f"not a readable image: {error}") from None
                # Pillow reads the rare kinds, or refuses them.
        return self._whole

    @cached_property
    def _whole(self) -> np.ndarray:
        return _decode_whole(self._data, self._values)

    def _read_jpeg_header(self) -> bool:
        """Set size and orientation; false if libjpeg-turbo does not support the header."""
        try:
            rows, columns, colors, _ = simplejpeg.decode_jpeg_header(self._data)
        except Exception:  # a KeyError for color spaces it does not know
            return False
        height, width = int(rows), int(columns)
        if colors in ("CMYK", "YCCK"):
            return False  # for Pillow: Adobe stores them inverted
        jpeg.check_cost(self._data, height, width)
        if jpeg.has_exif(self._data):
            self._orientation = _read_orientation(self._data)
        self.height, self.width = (height, width) if self._orientation < 5 else (width, height)
        return True


def decode_image(data: bytes, values: ValueRange | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of an image file, upright.

    Raises:
        ValueError: The bytes are not an image that can be decoded completely.
    """
    return Picture(data, values).pixels()


def pixels_of(image: Image.Image, values: ValueRange | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of an image that Pillow opened or made, upright.

    Raises:
        ValueError: It cannot be decoded, or has more than 8 bits and there is no range for them.
    """
    image.load()  # first: a TIFF may be turned by its decoder, which then says so
    if image.mode.startswith("I") or image.mode == "F":
        pixels = Raster(np.asarray(image), f"mode {image.mode}").to_rgb(values)
    else:
        pixels = _to_rgb(image)
    return turn_upright(pixels, _orientation_of(image))


def facts_of(data: bytes) -> ImageFacts:
    """The facts in an image's header.

    Raises:
        ValueError: The bytes are not a supported image; says what they are. A ``TooLargeError`` if
            decoding would take too much memory or time.
    """
    try:
        if data[:8] == png.MAGIC:
            return png.facts_of(data)
        if tiff.is_tiff(data):
            return tiff.facts_of(data)
        if jpeg.is_deep(data):
            return jpeg.facts_of_deep(data)
        if data[:3] == jpeg.MAGIC and (found := jpeg.facts_of(data)):
            return found
        with open_by_pillow(data) as image:
            return ImageFacts(
                image.format or "",
                image.height,
                image.width,
                {"L": "gray", "LA": "gray", "P": "palette", "RGBA": "RGB"}.get(
                    image.mode, image.mode
                ),
                "1-bit" if image.mode == "1" else "8-bit",
                is_transparent=image.has_transparency_data,
                num_pages=getattr(image, "n_frames", 1),
            )
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # parsers of broken headers raise many kinds
        raise ValueError(f"damaged: {first_line(error)}") from None


def read_raster(data: bytes) -> Raster | None:
    """The stored values of an image that Pillow would round or misread; None for all others.

    Raises:
        ValueError: It is damaged, or not gray or RGB; says what it is.
    """
    if png.is_deep(data):
        return png.read_deep(data, _read_orientation(data))
    if tiff.is_tiff(data):
        return tiff.read_unusual(data)
    if jpeg.is_deep(data):
        return jpeg.read_deep(data, _read_orientation(data))
    return None


def largest_shrink(side: int, least: float) -> int:
    """The largest of ``SHRINKS`` that leaves at least ``least`` of a side's pixels."""
    return max(by for by in SHRINKS if by == 1 or side >= least * by)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation.

    Args:
        pixels: (H, W, C) as stored.
        orientation: 1 to 8, as in EXIF 2.3, section 4.6.4, tag 0x0112.

    Returns:
        (H, W, C), or (W, H, C) for 5 to 8; a view.
    """
    if orientation == 1:
        return pixels
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    return pixels


def open_by_pillow(data: bytes) -> Image.Image:
    """The image with its header read, if format and size are supported.

    Raises:
        ValueError: They are not; the message says what it is. A ``TooLargeError`` if decoding would
            take too much memory or time.
    """
    formats = registered(is_heic(data))
    if tiff.is_tiff(data):
        tiff.quiet_libtiff()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, from every data worker
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError:
        raise ValueError(f"its content is {name_of_content(data)}") from None
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Pillow's parsers of broken headers raise many kinds of exceptions, and one file must not
        # end the work on a million.
        raise ValueError(f"no readable image header: {error}") from None
    _check_cost(data, image)
    return image


def _decode_whole(data: bytes, values: ValueRange | None) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    try:
        if raster := read_raster(data):
            return turn_upright(raster.to_rgb(values), raster.orientation)
        try:
            return _decode_by_pillow(data)
        except Exception:
            # Pillow refuses long texts and large color profiles, which do not affect the pixels.
            if data[:8] != png.MAGIC or len(plain := png.without_metadata(data)) == len(data):
                raise
            return _decode_by_pillow(plain)
    except (MemoryError, TooLargeError):
        raise
    except Exception as error:
        # As above: damaged TIFFs have raised TypeError, OverflowError and struct.error.
        raise ValueError(f"not a readable image: {error}") from None


def _decode_by_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_by_pillow(data) as image:
            image.load()  # first: the decoder may turn a TIFF, and then resets its orientation
            return turn_upright(_to_rgb(image), _orientation_of(image))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, on white where it is transparent, not yet turned."""
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"a {image.format} of mode {image.mode}, whose value range is unknown")
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    rows = max(1, _BLOCK // image.width)
    for top in range(0, image.height, rows):
        end = min(top + rows, image.height)
        part = image
        if rows < image.height:
            part = image.crop((0, top, image.width, end))
        if part.has_transparency_data:
            part = part.convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", part.size, _WHITE), part)
        pixels[top:end] = np.asarray(part.convert("RGB"))
    return pixels


def _read_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG or PNG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return _orientation_of(image)
    except Exception:
        return 1


def _orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if a file has none that is valid."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A broken EXIF block must not cost the image; Pillow's parser raises many kinds.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_cost(data: bytes, image: Image.Image) -> None:
    """Refuse by its header an image that Pillow opened."""
    stored = 1 if image.mode in ("1", "L", "P") else 4
    if data[:3] == jpeg.MAGIC:  # Pillow has another format name for those of several pictures
        jpeg.check_cost(data, image.height, image.width, stored + 3)
    elif image.format != "TIFF":  # tiff.read_unusual has checked its strips and tiles
        beside = _DECODERS.get(image.format or "", 0.0)
        check_memory(image.height, image.width, stored + beside + 3)
