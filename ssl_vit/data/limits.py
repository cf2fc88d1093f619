"""Limits on decoding one image, checked on its header before a pixel is decoded.

A file of a few hundred kilobytes can take gigabytes or minutes to decode, in every data worker.
"""

MAX_PIXELS = 178_956_970
"""Height × width above which an image counts as a decompression bomb; Pillow's own limit."""

MAX_DECODE_BYTES = 600_000_000
"""Memory that decoding one image may take: stored values, decoder's memory and pixels together.

The largest images within it are a JPEG of 178 million pixels, an 8-bit color PNG of 85 million, and
16-bit gray of 120 million.
"""

MAX_SCANS = 100
"""Scans that a progressive JPEG may have; programs write about ten, at most 64."""

MAX_SCANNED_PIXELS = 3e9
"""Scans × pixels of a progressive JPEG: a few seconds."""


class TooLargeError(ValueError):
    """An image that would take too much memory or time."""


class TooManyPixelsError(TooLargeError):
    """A decompression bomb."""


def check_pixels(height: int, width: int) -> None:
    """Refuse a decompression bomb.

    Raises:
        TooManyPixelsError: More than ``MAX_PIXELS``.
        ValueError: No pixels.
    """
    if not height * width:
        raise ValueError("damaged: it has no pixels")
    if height * width > MAX_PIXELS:
        raise TooManyPixelsError(f"{width} × {height} pixels, more than {MAX_PIXELS:,}")


def check_file_size(num_bytes: int) -> None:
    """Refuse a file that would fill a worker's memory before it is decoded.

    Raises:
        TooLargeError: More than ``MAX_DECODE_BYTES``.
    """
    if num_bytes > MAX_DECODE_BYTES:
        raise TooLargeError(
            f"a file of {num_bytes / 1e6:,.0f} MB, more than {MAX_DECODE_BYTES / 1e6:,.0f} MB; cut "
            "it into tiles"
        )


def check_memory(height: int, width: int, bytes_per_pixel: float) -> None:
    """Refuse an image whose decoding would fill a worker's memory.

    Args:
        bytes_per_pixel: Memory per pixel of all that is held at once.

    Raises:
        TooLargeError: More than ``MAX_PIXELS`` or ``MAX_DECODE_BYTES``.
        ValueError: No pixels.
    """
    check_pixels(height, width)
    if (needed := height * width * bytes_per_pixel) > MAX_DECODE_BYTES:
        raise TooLargeError(
            f"{width} × {height} pixels take {needed / 1e6:,.0f} MB to decode, more than "
            f"{MAX_DECODE_BYTES / 1e6:,.0f} MB; cut it into tiles"
        )


def check_scans(scans: int, height: int, width: int) -> None:
    """Refuse a progressive JPEG that would take minutes.

    Raises:
        TooLargeError: More than ``MAX_SCANS``, or ``MAX_SCANNED_PIXELS`` in all.
    """
    if scans > MAX_SCANS or scans * height * width > MAX_SCANNED_PIXELS:
        count = f"more than {MAX_SCANS}" if scans > MAX_SCANS else f"{scans}"
        raise TooLargeError(
            f"a progressive JPEG of {width} × {height} pixels in {count} scans would take too "
            "long to decode; save it as a baseline JPEG"
        )
