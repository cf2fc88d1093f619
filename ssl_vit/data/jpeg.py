"""JPEGs decoded no further than needed: at a fraction of their size, and only down to a row.

libjpeg-turbo decodes from the top and has no way to stop early, but it stops where the header says
that the image ends. For a crop that ends early, a copy of the header has a smaller height, and the
decoder warns about the data it did not read. This warning, and no other, is expected: it comes
first, so all that was decoded was sound. The rows equal those of a full decode bit for bit.
"""

import re
from collections.abc import Iterator

import imagecodecs
import numpy as np
import simplejpeg

from ssl_vit.data.limits import MAX_SCANS, check_memory, check_scans
from ssl_vit.data.raster import ImageFacts, Raster

MAGIC = b"\xff\xd8\xff"
END_OF_IMAGE = b"\xff\xd9"
_SEQUENTIAL = (0xC0, 0xC1)  # frames with one pass over the image; progressive ones have many
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_MOST_SEGMENTS = 10_000  # a color profile or a large preview has hundreds
_END_OF_IMAGE = 0xD9
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_MCU = 16  # pixel rows per row of blocks with the usual subsampling
_UNREAD = "extraneous bytes before marker 0xd9"
# libjpeg's warnings when pixels are lost and it fills in gray; its other warnings are harmless.
_DAMAGE = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset after it) of all segments before the pixels; the last is the start of scan.

    Skips what libjpeg skips: padding, markers without a length, and stray bytes.
    """
    place = 2
    for _ in range(_MOST_SEGMENTS):
        if (found := _MARKER.search(data, place)) is None or found[1][0] == _END_OF_IMAGE:
            return
        yield found[1][0], found.end()
        if found[1][0] == _START_OF_SCAN:
            return
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def has_exif(data: bytes) -> bool:
    """Whether a segment before the pixels holds EXIF; it need not be the first."""
    return any(
        marker == _APP1 and data[place + 2 : place + 8] == b"Exif\0\0"
        for marker, place in segments(data)
    )


def facts_of(data: bytes) -> ImageFacts | None:
    """The facts in the header; None if libjpeg-turbo does not support it, as Pillow may.

    Raises:
        TooLargeError: Decoding would take too much memory or time.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:  # a KeyError for color spaces it does not know
        return None
    check_cost(data, int(height), int(width))
    channels = {"Gray": "gray", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colors, "RGB")
    return ImageFacts("JPEG", int(height), int(width), channels, "8-bit")


def check_cost(data: bytes, height: int, width: int, kept: float = 3.0) -> None:
    """Refuse a JPEG by its header.

    Args:
        kept: Bytes per pixel that are held beside the decoder's own memory.

    Raises:
        TooLargeError: Decoding would take too much memory or time.
    """
    components, progressive, coefficients = 0, False, 6.0
    start = 2
    for marker, place in segments(data):
        if marker in _FRAMES and place + 8 <= len(data):
            progressive = marker in _PROGRESSIVE
            components = data[place + 7]
            # Each component's sampling factors, horizontal and vertical, in the halves of a byte.
            factors = data[place + 9 : place + 8 + 3 * components : 3]
            samples = [(factor >> 4) * (factor & 15) for factor in factors]
            coefficients = 2 * sum(samples) / max([1, *samples])
        elif marker == _START_OF_SCAN:
            start = place - 2
            has_all = data[place + 2 : place + 3] >= bytes([components])
            if has_all and not progressive:
                check_memory(height, width, kept)
                return
    # Images of several scans are kept whole, as 16-bit coefficients; so may be those with garbage
    # between their segments, which libjpeg skips.
    check_scans(_count_scans(data, start), height, width)
    check_memory(height, width, kept + coefficients)


def _count_scans(data: bytes, start: int) -> int:
    """Number of scans from ``start``, at or before the first marker; stops one over the limit."""
    if (count := data.count(b"\xff\xda", start)) <= MAX_SCANS:
        return count
    # Some of them may lie behind the image's end, in a phone's video.
    count, place = 0, start
    while count <= MAX_SCANS and (found := _MARKER.search(data, place)):
        marker, place = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            break
        count += marker == _START_OF_SCAN
        place += int.from_bytes(data[place : place + 2], "big")
    return count


def is_deep(data: bytes) -> bool:
    """Whether it is a JPEG of more than 8 bits, as in medical archives."""
    return data[:3] == MAGIC and (frame := _frame(data)) is not None and frame[0] > 8


def facts_of_deep(data: bytes) -> ImageFacts:
    """The facts in the header of a JPEG of more than 8 bits.

    Raises:
        TooLargeError: Decoding would take too much memory or time.
    """
    frame = _frame(data)
    assert frame is not None
    bits, height, width, components = frame
    check_cost(data, height, width, 3 + 2 * components)
    channels = {1: "gray", 3: "RGB"}.get(components, f"{components} channels")
    return ImageFacts("JPEG", height, width, channels, f"{bits}-bit", is_deep=True)


def read_deep(data: bytes, orientation: int) -> Raster:
    """Decode a JPEG of more than 8 bits.

    Args:
        orientation: The EXIF orientation.

    Raises:
        ValueError: It is damaged, or neither gray nor RGB.
    """
    facts = facts_of_deep(data)
    try:
        values = imagecodecs.jpeg_decode(data)
    except Exception as error:  # libjpeg's own exception class
        raise ValueError(f"a JPEG of {facts.depth} that cannot be decoded: {error}") from None
    if values.ndim == 3 and values.shape[2] != 3:
        raise ValueError(f"a JPEG of {values.shape[2]} channels, {facts.depth}")
    return Raster(values, facts.depth, orientation=orientation)


def _frame(data: bytes) -> tuple[int, int, int, int] | None:
    """(bits, height, width, components) of the frame header; None if there is none."""
    for marker, place in segments(data):
        if marker in _FRAMES and place + 8 <= len(data):
            height = int.from_bytes(data[place + 3 : place + 5], "big")
            width = int.from_bytes(data[place + 5 : place + 7], "big")
            return data[place + 2], height, width, data[place + 7]
    return None


def size_of(data: bytes) -> tuple[int, int] | None:
    """(height, width) of the frame header; None if there is none."""
    frame = _frame(data)
    return frame and frame[1:3]


def decode(data: bytes, size: tuple[int, int], shrink: int, rows: int) -> np.ndarray:
    """Decode a JPEG, or its upper part.

    Args:
        data: The whole file.
        size: (H, W) in its header.
        shrink: 1, 2, 4 or 8: the sides are divided by it and rounded up.
        rows: How many of the H rows are needed.

    Returns:
        (h, w, 3) uint8 RGB; h may be anything from ``rows`` / ``shrink`` to H / ``shrink``.

    Raises:
        ValueError: The decoded part is damaged.
    """
    height, width = size
    columns = -(-width // shrink)
    # The last row is decoded without the one below it, so it must not be needed.
    end = -(-(rows + 4 * shrink) // _MCU) * _MCU
    if end < height and (shortened := _shorten(data, end)):
        pixels = np.empty((end // shrink, columns, 3), dtype=np.uint8)
        try:
            simplejpeg.decode_jpeg(
                shortened, "RGB", min_height=end // shrink, min_width=columns, buffer=pixels
            )
        except ValueError as error:
            if _UNREAD in str(error):
                return pixels
        # Damaged, or an unknown warning: decode the whole image to decide.
    return simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // shrink), min_width=columns)


def is_damage(error: ValueError) -> bool:
    """Whether an error of :func:`decode` means that pixels are lost."""
    return any(words in str(error).lower() for words in _DAMAGE)


def _shorten(data: bytes, rows: int) -> bytes:
    """The file with another height in its header; empty if that is not possible."""
    frame = 0
    for marker, place in segments(data):
        if marker in _SEQUENTIAL:
            frame = place
        elif marker == _START_OF_SCAN and frame:
            # Frame: length (2), precision (1), height (2), width (2), components (1).
            components, in_scan = data[frame + 7], data[place + 2]
            if components == in_scan:
                return b"".join((data[: frame + 3], rows.to_bytes(2, "big"), data[frame + 5 :]))
    return b""
