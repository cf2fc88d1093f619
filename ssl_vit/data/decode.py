"""Image bytes to pixels: libjpeg-turbo for JPEG, Pillow for the rest.

Pixels come as they are stored; an EXIF orientation is not applied.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

# What is read from anyone's files. Pillow knows forty formats, and not all are fit to be taken from
# strangers: EPS is decoded by an outside program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_JPEG_MAGIC = b"\xff\xd8\xff"


def decode_image(data: bytes) -> np.ndarray:
    """Decode one image file.

    Args:
        data: The whole file.

    Returns:
        (H, W, 3) uint8, RGB; grey is repeated, transparency is dropped, 16 bits are scaled to 8.

    Raises:
        ValueError: The bytes are no image that can be decoded whole.
    """
    if data[:3] == _JPEG_MAGIC:
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:
            pass  # CMYK and other rare kinds are Pillow's to read, or to refuse
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, from every data worker
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return np.array(_to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
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
