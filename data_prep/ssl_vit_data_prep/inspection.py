"""Is this file an image, and is it all there? Answered from its structure, without decoding.

JPEG and PNG, which are nearly all of the world's images, are looked through by hand in
microseconds. The rest are rare, and are decoded.
"""

import os
import struct
from pathlib import Path

import simplejpeg

from ssl_vit.data.decode import FORMATS, MAX_PIXELS, Picture, open_by_pillow
from ssl_vit.data.jpeg import END_OF_IMAGE, MAGIC, segments
from ssl_vit_data_prep.refusals import RefusedError

_LARGEST_IMAGE = 0x7FFFF000  # bytes that Linux gives in one `pread`, which is how samples are read
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image_file(path: str | Path, max_pixels: int = MAX_PIXELS, decodes: bool = False) -> bytes:
    """The bytes of a file that is an image.

    Args:
        path: The file.
        max_pixels: Height × width that it may have, by its header.
        decodes: Decode it too, which finds every damage.

    Raises:
        RefusedError: Empty, too large, unreadable, cut off, or no image of a format that we take.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_IMAGE:
                raise RefusedError("too large", "larger than 2 GiB")
            data = file.readall()
    except OSError as error:
        raise RefusedError("unreadable", f"cannot be read: {error.strerror}") from None
    inspect(data, max_pixels, decodes)
    return data


def inspect(data: bytes, max_pixels: int = MAX_PIXELS, decodes: bool = False) -> None:
    """Raise what is wrong with an image file's bytes.

    Raises:
        RefusedError: See :func:`read_image_file`.
    """
    if not data:
        raise RefusedError("empty", "empty file")
    if data[:3] == MAGIC and (size := _jpeg_size(data)):
        _check_pixels(*size, max_pixels)
        _check_jpeg_end(data)
    elif data[:8] == _PNG:
        _check_pixels(*_png_size(data), max_pixels)
        _check_png_end(data)
    else:
        if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
            raise RefusedError("truncated", "cut off: the WebP is shorter than its header says")
        _check_by_pillow(data, max_pixels)
        decodes = True
    if decodes:
        try:
            Picture(data).pixels()
        except ValueError as error:
            kind = "truncated" if "truncated" in str(error) else "damaged"
            raise RefusedError(kind, str(error)) from None


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RefusedError(
            "too many pixels",
            f"{width} × {height} = {height * width / 1e6:,.0f} million pixels, "
            f"the limit is {max_pixels / 1e6:,.0f}",
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width); None where libjpeg-turbo does not take the header, which Pillow may."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return int(height), int(width)


def _check_jpeg_end(data: bytes) -> None:
    if data.endswith(END_OF_IMAGE):
        return
    # Some programs append bytes of their own. In a scan 0xFF is always escaped, so the first end
    # mark after the start of one is real; before it, there may be that of a thumbnail.
    place = max((place for _, place in segments(data)), default=0)
    if data.find(END_OF_IMAGE, place) < 0:
        raise RefusedError("truncated", "cut off: the JPEG has no end-of-image mark")


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise RefusedError("no image", "the PNG has no header")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _check_png_end(data: bytes) -> None:
    place = len(_PNG)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        place += 12 + length
        if data[place - length - 8 : place - length - 4] == b"IEND":
            return
    raise RefusedError("truncated", "cut off: the PNG has no end chunk")


def _check_by_pillow(data: bytes, max_pixels: int) -> None:
    try:
        with open_by_pillow(data) as image:
            _check_pixels(image.height, image.width, max_pixels)
    except RefusedError:
        raise
    except ValueError as error:
        kind = "too many pixels" if "pixels" in str(error) else "no image"
        reason = str(error) or f"its content is none of {', '.join(FORMATS)}"
        raise RefusedError(kind, reason) from None
