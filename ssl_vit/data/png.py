"""PNG chunks, and PNGs of 16 bits: Pillow drops the lower byte of 16-bit color.

Source: PNG Specification (Third Edition), W3C 2025.
"""

import struct
from collections.abc import Iterator

import imagecodecs

from ssl_vit.data.limits import check_memory
from ssl_vit.data.raster import ImageFacts, Raster

MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: ("gray", 1), 2: ("RGB", 3), 3: ("palette", 1), 4: ("gray", 2), 6: ("RGB", 4)}
# The chunks that affect pixels or orientation; color profiles and texts do not.
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset of its data, length) of every complete chunk, up to IEND or the file's end."""
    place = len(MAGIC)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            return
        kind = data[place + 4 : place + 8]
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += 12 + length


def facts_of(data: bytes) -> ImageFacts:
    """The facts in the header.

    Raises:
        ValueError: There is none, or decoding would take too much memory.
    """
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("the PNG has no header")
    width, height, bits, color = struct.unpack(">IIBB", data[16:26])
    if color not in _CHANNELS:
        raise ValueError(f"the PNG has the unknown color type {color}")
    samples = _CHANNELS[color][1]
    frames, has_color_key = 1, False
    for kind, place, length in chunks(data):
        if kind == b"acTL" and length >= 8:
            frames = max(1, int.from_bytes(data[place : place + 4], "big"))
        elif kind == b"tRNS":
            has_color_key = True
        elif kind == b"IDAT":
            break
    # A transparent color becomes a channel. Pillow keeps one byte per pixel, or four.
    deep = 2 * (samples + has_color_key)
    check_memory(height, width, 3 + (deep if bits == 16 else 1 if samples == 1 else 4))
    return ImageFacts(
        "PNG",
        height,
        width,
        _CHANNELS[color][0],
        f"{bits}-bit",
        is_deep=bits == 16,
        is_transparent=color in (4, 6) or has_color_key,
        num_pages=frames,
    )


def is_deep(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits."""
    return data[:8] == MAGIC and len(data) > 26 and data[24] == 16


def read_deep(data: bytes, orientation: int) -> Raster:
    """Decode a PNG of 16 bits.

    Args:
        orientation: The EXIF orientation, from the chunk eXIf.

    Raises:
        ValueError: It is damaged.
    """
    facts = facts_of(data)
    try:
        values = imagecodecs.png_decode(without_metadata(data))
    except Exception as error:  # libpng's own exception class
        raise ValueError(f"damaged PNG: {error}") from None
    if values.shape[:2] != (facts.height, facts.width):
        raise ValueError("damaged PNG: its data does not fill the image")
    opacity = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        opacity = values[:, :, -1]
        values = values[:, :, 0] if values.shape[2] == 2 else values[:, :, :3]
    return Raster(values, facts.depth, opacity, 65535.0, orientation=orientation)


def without_metadata(data: bytes) -> bytes:
    """The same image without texts and color profiles, whose size Pillow limits.

    Damaged files come back up to the damage.
    """
    kept = [
        data[place - 8 : place + length + 4]
        for kind, place, length in chunks(data)
        if kind in _PIXELS
    ]
    return MAGIC + b"".join(kept)
