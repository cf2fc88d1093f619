"""Inspecting image files: whether a file is an image, its properties, and whether it is complete.

JPEG and PNG, by far the most frequent formats, are checked by their structure in microseconds. The
others are decoded.
"""

import os
from pathlib import Path

from ssl_vit.data.decode import Picture, facts_of
from ssl_vit.data.jpeg import END_OF_IMAGE, segments
from ssl_vit.data.limits import MAX_DECODE_BYTES, MAX_PIXELS, TooLargeError, TooManyPixelsError
from ssl_vit.data.png import chunks
from ssl_vit.data.raster import ImageFacts
from ssl_vit.data.values import ValueRange
from ssl_vit_data_prep.refusals import NO_MEMORY, Kind, RefusedError

_LARGEST_FILE = 0x7FFFF000  # bytes that Linux returns from one `read`


def read_image_file(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    decodes: bool = False,
    values: ValueRange | None = None,
) -> tuple[bytes, ImageFacts]:
    """The bytes of an image file and the facts in its header.

    Args:
        path: The file.
        max_pixels: Largest height × width, by its header.
        decodes: Decode it too, which finds all damage.
        values: How values of more than 8 bits are shown.

    Raises:
        RefusedError: Empty, too large, unreadable, truncated, or not a supported image.
    """
    data = read_file(path)
    return data, inspect(data, max_pixels, decodes, values)


def read_file(path: str | Path) -> bytes:
    """All bytes of a file.

    Raises:
        RefusedError: Too large, or unreadable.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST_FILE:
                raise RefusedError("too large", "larger than 2 GiB")
            if not size:
                raise RefusedError("empty", "empty file")  # some files of /proc never end
            return file.readall()
    except OSError as error:
        raise RefusedError("unreadable", f"cannot be read: {error.strerror}") from None


def inspect(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    decodes: bool = False,
    values: ValueRange | None = None,
) -> ImageFacts:
    """The facts in an image file's header.

    Raises:
        RefusedError: See :func:`read_image_file`.
    """
    if not data:
        raise RefusedError("empty", "empty file")
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise RefusedError("truncated", "truncated: the WebP is shorter than its header says")
    try:
        facts = facts_of(data)
    except ValueError as error:
        raise refusal_of(error, "no image") from None
    _check_pixels(facts.height, facts.width, max_pixels)
    if facts.is_deep and values is None:
        raise RefusedError(
            "no value range",
            f"{facts.depth}, but no sampled image has more than 8 bits; set the values of black "
            "and white with --value-range LOW HIGH",
        )
    if facts.format == "JPEG":
        _check_jpeg_end(data)
    elif facts.format == "PNG":
        _check_png_end(data)
    else:
        decodes = True
    # A stack of pages may be larger than one image; each page is checked when it is packed.
    if decodes and (facts.num_pages == 1 or len(data) <= MAX_DECODE_BYTES):
        try:
            Picture(data, values).pixels()
        except MemoryError:
            raise RefusedError("too large", NO_MEMORY) from None
        except ValueError as error:
            kind = "truncated" if "truncated" in str(error) else "damaged"
            raise refusal_of(error, kind) from None
    return facts


def refusal_of(error: ValueError, otherwise: Kind) -> RefusedError:
    """The refusal of a file that cannot be decoded.

    Args:
        otherwise: Its kind, unless decoding would take too much memory or time.
    """
    kind = otherwise
    if isinstance(error, TooManyPixelsError):
        kind = "too many pixels"
    elif isinstance(error, TooLargeError):
        kind = "too large"
    return RefusedError(kind, str(error))


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RefusedError(
            "too many pixels",
            f"{width} × {height} = {height * width / 1e6:,.0f} million pixels, "
            f"the limit is {max_pixels / 1e6:,.0f}",
        )


def _check_jpeg_end(data: bytes) -> None:
    if data.endswith(END_OF_IMAGE):
        return
    # Some programs append other data. In a scan 0xFF is always escaped, so the first end mark after
    # the start of a scan is real; before it, there may be that of a thumbnail.
    place = max((place for _, place in segments(data)), default=0)
    if data.find(END_OF_IMAGE, place) < 0:
        raise RefusedError("truncated", "truncated: the JPEG has no end-of-image mark")


def _check_png_end(data: bytes) -> None:
    if not any(kind == b"IEND" for kind, _, _ in chunks(data)):
        raise RefusedError("truncated", "truncated: the PNG has no end chunk")
