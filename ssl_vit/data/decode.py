"""Image bytes to upright RGB pixels: libjpeg-turbo for JPEG, Pillow for the rest.

A JPEG can be decoded at a half, a quarter or an eighth of its size for less work; whoever wants
small crops of a large photograph asks for that. An EXIF orientation is applied, so a camera held
sideways makes no sideways image.
"""

import io
import warnings
from functools import cached_property

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ssl_vit.data import jpeg

# What is read from anyone's files. Pillow knows forty formats, and not all are fit to be taken from
# strangers: EPS is decoded by an outside program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

MAX_PIXELS = 178_956_970
"""Height × width beyond which an image is taken for a decompression bomb; Pillow's own limit."""

SHRINKS = (1, 2, 4, 8)
"""By how much a JPEG's sides can be divided while it is decoded."""

_ORIENTATION = 0x0112
# Where an EXIF block may begin; it comes first by its standard.
_EXIF_WITHIN = 4096


class Picture:
    """One encoded image. Its size is known at once, its pixels are decoded when asked for.

    Args:
        data: The whole file.

    Raises:
        ValueError: The bytes are no image that we read, or one of more than ``MAX_PIXELS``.
    """

    height: int
    """Pixels, upright."""
    width: int
    """Pixels, upright."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._orientation = 1
        self._is_jpeg = data[:3] == jpeg.MAGIC and self._read_jpeg_header()
        if not self._is_jpeg:
            self.height, self.width = self._by_pillow.shape[:2]

    @classmethod
    def of_pixels(cls, pixels: np.ndarray) -> "Picture":
        """A picture that is decoded already, from (H, W, 3) uint8."""
        picture = cls.__new__(cls)
        picture._is_jpeg, picture._by_pillow = False, pixels
        picture.height, picture.width = pixels.shape[:2]
        return picture

    def pixels(self, shrink: int = 1, rows: int | None = None) -> np.ndarray:
        """Decode.

        Args:
            shrink: One of ``SHRINKS``; heeded where the file is a JPEG.
            rows: How many upper rows of the image are needed; more may come. None: all.

        Returns:
            (H, W, 3) uint8 RGB, upright; a shrunk side is rounded up. Grey is repeated,
            transparency is dropped, 16 bits are scaled to 8.

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
                # Rare kinds are Pillow's to read, or to refuse.
        return self._by_pillow

    @cached_property
    def _by_pillow(self) -> np.ndarray:
        return _decode_by_pillow(self._data)

    def _read_jpeg_header(self) -> bool:
        """Set size and orientation; false where the header is none that libjpeg-turbo takes."""
        try:
            rows, columns, colours, _ = simplejpeg.decode_jpeg_header(self._data)
        except ValueError:
            return False
        height, width = int(rows), int(columns)
        if colours in ("CMYK", "YCCK"):
            return False  # Pillow knows that Adobe stores them inverted
        _check_size(height, width)
        if self._data.find(b"Exif\0\0", 0, _EXIF_WITHIN) >= 0:
            self._orientation = _read_orientation(self._data)
        self.height, self.width = (height, width) if self._orientation < 5 else (width, height)
        return True


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of an image file, upright.

    Raises:
        ValueError: The bytes are no image that can be decoded whole.
    """
    return Picture(data).pixels()


def largest_shrink(side: int, least: float) -> int:
    """The largest of ``SHRINKS`` that leaves a side of so many pixels at least ``least``."""
    return max(by for by in SHRINKS if by == 1 or side >= least * by)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation.

    Args:
        pixels: (H, W, C) as stored.
        orientation: 1 to 8, as in EXIF 2.3, section 4.6.4, tag 0x0112.

    Returns:
        (H, W, C), or (W, H, C) for 5 to 8; contiguous.
    """
    if orientation == 1:
        return pixels
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels)


def open_by_pillow(data: bytes) -> Image.Image:
    """The image with its header read, of a format and size that we take.

    Raises:
        ValueError: It is none; the message says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, from every data worker
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Anything: Pillow's parsers raise whatever a broken header makes them trip over, and one
        # file must not end the work on a million.
        raise ValueError(f"no readable image header: {error}") from None
    _check_size(image.height, image.width)
    return image


def _decode_by_pillow(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_by_pillow(data) as image:
                image.load()
                return np.array(to_rgb(_upright(image)))
    except MemoryError:
        raise
    except Exception as error:
        # As above: a damaged TIFF was seen to raise TypeError, OverflowError and struct.error.
        raise ValueError(f"not a readable image: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # a broken EXIF block must not cost the image


def to_rgb(image: Image.Image) -> Image.Image:
    """In mode RGB, with 16 bits and floating point scaled to 8 bits instead of cut."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion to RGB would cut everything above 255 off. Mode "I"
        # holds 16 bits too where a file was PNG, and full 32 where it was TIFF.
        grey = np.asarray(image, dtype=np.float64).clip(0, 65535) / 257.0
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        # Floating point has no agreed range: its own is stretched to the whole of 8 bits.
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = grey.min(), grey.max()
        grey = (grey - low) * (255.0 / (high - low) if high > low else 0.0)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _read_orientation(data: bytes) -> int:
    """1 to 8; 1 where a file's EXIF block says nothing that makes sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A broken EXIF block must not cost the image; Pillow's parser trips over it in many ways.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels, more than {MAX_PIXELS:,}")
