"""A short digest of an image's pixels: equal digests mean equal pixels. No torch here.

Images of a single color have a recognizable digest: black tiles and empty margins have equal pixels
without being copies of anything.
"""

import hashlib
import struct

import numpy as np

DIGEST_BYTES = 16
_SINGLE_COLOR = b"\0" * 5  # one sha256 in 10^12 begins like this


def digest_pixels(pixels: np.ndarray) -> bytes:
    """16 bytes that differ if size or pixels do.

    Args:
        pixels: (H, W, 3) uint8.
    """
    height, width, _ = pixels.shape
    size = struct.pack("<II", height, width)
    corners = pixels[0, 0], pixels[-1, -1]
    # The corners first: for almost every photograph, two pixels save the comparison of all.
    if np.array_equal(*corners) and (pixels == corners[0]).all():
        return _SINGLE_COLOR + corners[0].tobytes() + size
    # sha256, since processors have instructions for it: 150 kB take 0.1 ms, blake2b six times that.
    digest = hashlib.sha256(size)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()[:DIGEST_BYTES]


def is_single_color(digest: bytes) -> bool:
    """Whether the digest is that of an image of a single color."""
    return digest.startswith(_SINGLE_COLOR)
