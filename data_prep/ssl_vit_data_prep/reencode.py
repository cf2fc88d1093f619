"""Scaling images down to a shorter side, as JPEG. Images that are small enough stay untouched."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssl_vit.data.decode import Picture, largest_shrink
from ssl_vit.data.limits import TooLargeError
from ssl_vit.data.values import ValueRange

_LONGEST_JPEG = 65_500  # pixels; libjpeg's own limit


@dataclass(frozen=True)
class Reencoding:
    """The values of `--short-side` and `--quality`."""

    short_side: int = 0
    """Pixels; 0 leaves every image as it is."""
    quality: int = 90
    """JPEG quality, 1 to 100."""


def reencode(
    data: bytes, ending: str, how: Reencoding, values: ValueRange | None = None
) -> tuple[bytes, str]:
    """(bytes, ending) of an image, scaled down if its shorter side is longer than requested.

    Args:
        values: How values of more than 8 bits are mapped to 8.

    Raises:
        ValueError: It cannot be decoded, or would be larger than a JPEG can be.
    """
    if not how.short_side:
        return data, ending
    picture = Picture(data, values)
    shorter = min(picture.height, picture.width)
    if shorter <= how.short_side:
        return data, ending
    scale = how.short_side / shorter
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if max(size) > _LONGEST_JPEG:
        raise TooLargeError(
            f"{picture.width} × {picture.height} pixels would become {size[0]} × {size[1]}, and a "
            f"JPEG has at most {_LONGEST_JPEG:,} per side"
        )
    # Decoded at twice the final size, so that the resize has enough pixels to average.
    image = Image.fromarray(picture.pixels(largest_shrink(shorter, 2 * how.short_side)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    if _is_gray(image):
        image = image.convert("L")
    image.save(stream, "JPEG", quality=how.quality)
    return stream.getvalue(), "jpg"


def _is_gray(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())
