"""Pages of a stack as images of their own: TIFF pages as TIFF with the same values, frames of an
animation as PNG.
"""

import io

from PIL import ImageOps

from ssl_vit.data import tiff
from ssl_vit.data.decode import open_by_pillow


def split_page(data: bytes, number: int) -> tuple[bytes, str]:
    """(bytes, file ending) of one page.

    Args:
        data: A file of several pages.
        number: From 0.

    Raises:
        ValueError: It is damaged, or of a color that would not survive.
    """
    if tiff.is_tiff(data):
        return tiff.split_page(data, number), "tif"
    stream = io.BytesIO()
    try:
        with open_by_pillow(data) as image:
            image.seek(number)
            frame = ImageOps.exif_transpose(image.convert("RGBA"))
            is_opaque = frame.getchannel("A").getextrema() == (255, 255)
            frame = frame.convert("RGB") if is_opaque else frame
            frame.save(stream, "PNG", compress_level=1)
    except ValueError:
        raise
    except Exception as error:  # whatever a damaged frame makes Pillow trip over
        raise ValueError(f"frame {number} cannot be read: {error}") from None
    return stream.getvalue(), "png"
