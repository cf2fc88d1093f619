"""Pages of a stack as images of their own: TIFF pages as TIFF with the same values, frames of an
animation as PNG.
"""

import io
from collections.abc import Iterable, Iterator

from PIL import Image, ImageOps

from ssl_vit.data import tiff
from ssl_vit.data.decode import open_by_pillow


def take_pages(data: bytes, numbers: Iterable[int]) -> Iterator[tuple[bytes, str]]:
    """(bytes, file ending) of some pages.

    Args:
        data: A file of several pages.
        numbers: Page numbers from 0, ascending.

    Raises:
        ValueError: It is damaged, or its color space would be lost.
    """
    if tiff.is_tiff(data):
        for page in tiff.take_pages(data, numbers):
            yield page, "tif"
        return
    with open_by_pillow(data) as image:
        for number in numbers:
            yield _take_frame(image, number), "png"


def _take_frame(image: Image.Image, number: int) -> bytes:
    stream = io.BytesIO()
    try:
        image.seek(number)
        frame = ImageOps.exif_transpose(image.convert("RGBA"))
        is_opaque = frame.getchannel("A").getextrema() == (255, 255)
        frame = frame.convert("RGB") if is_opaque else frame
        frame.save(stream, "PNG", compress_level=1)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers of damaged frames raise many kinds
        raise ValueError(f"frame {number} cannot be read: {error}") from None
    return stream.getvalue()
