"""One picture of a whole set: an even sample of its images, each with its class or key below."""

from collections.abc import Sequence
from pathlib import Path
from unicodedata import combining, normalize

import numpy as np
from PIL import Image, ImageDraw

from ssl_vit.files import replacing

SHEET_FILE = "contact_sheet.png"
_SIDE, _GAP, _CAPTION, _COLUMNS = 128, 6, 16, 8
_LONGEST_CAPTION = 20


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8: the central square of (H, W, 3) uint8, small."""
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box))


def write_contact_sheet(path: Path, pictures: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write thumbnails in rows.

    Args:
        path: Of the PNG.
        pictures: (caption, (S, S, 3) uint8).
    """
    rows = -(-len(pictures) // _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    width = columns * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, rows * (_SIDE + _CAPTION + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, pixels) in enumerate(pictures):
        row, column = divmod(number, _COLUMNS)
        left = _GAP + column * (_SIDE + _GAP)
        top = _GAP + row * (_SIDE + _CAPTION + _GAP)
        sheet.paste(Image.fromarray(pixels), (left, top))
        draw.text((left, top + _SIDE + 2), _shorten(caption), fill="black")
    with replacing(path) as partial:
        sheet.save(partial, "PNG", compress_level=1)  # ten times faster, a fifth larger


def _shorten(caption: str) -> str:
    # Pillow's own font has ASCII only; accents go, what is no letter then is a question mark.
    letters = "".join(c for c in normalize("NFKD", caption) if not combining(c))
    shown = letters.encode("ascii", "replace").decode()
    return shown if len(shown) <= _LONGEST_CAPTION else f"..{shown[2 - _LONGEST_CAPTION :]}"
