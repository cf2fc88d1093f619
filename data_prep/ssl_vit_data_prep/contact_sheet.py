"""One picture of a whole set: an even sample of its images, each with its class or key below it."""

from collections.abc import Sequence
from pathlib import Path
from unicodedata import combining, normalize

import numpy as np
from PIL import Image, ImageDraw

from ssl_vit.files import replacing

SHEET_FILE = "contact_sheet.png"
_SIDE, _GAP, _CAPTION, _COLUMNS = 128, 6, 16, 8
_LONGEST_CAPTION = 20
_TITLE_WIDTH = 560  # pixels that the longest title needs


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8: the central square of (H, W, 3) uint8, small."""
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box))


def write_contact_sheet(
    path: Path, pictures: Sequence[tuple[str, np.ndarray]], title: str = ""
) -> None:
    """Write thumbnails in rows.

    Args:
        path: The PNG to write.
        pictures: (caption, (S, S, 3) uint8).
        title: A line above the pictures.
    """
    above = _CAPTION if title else 0
    rows = -(-len(pictures) // _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    width = max(columns * (_SIDE + _GAP) + _GAP, _TITLE_WIDTH if title else 0)
    height = above + rows * (_SIDE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), _in_ascii(title), fill="black")
    for number, (caption, pixels) in enumerate(pictures):
        row, column = divmod(number, _COLUMNS)
        left = _GAP + column * (_SIDE + _GAP)
        top = above + _GAP + row * (_SIDE + _CAPTION + _GAP)
        sheet.paste(Image.fromarray(pixels), (left, top))
        draw.text((left, top + _SIDE + 2), _shorten(caption), fill="black")
    with replacing(path) as partial:
        sheet.save(partial, "PNG", compress_level=1)  # ten times faster, a fifth larger


def _in_ascii(text: str) -> str:
    # Pillow's own font has ASCII only; accents are dropped, other letters become question marks.
    letters = "".join(c for c in normalize("NFKD", text) if not combining(c))
    return letters.encode("ascii", "replace").decode()


def _shorten(caption: str) -> str:
    shown = _in_ascii(caption)
    return shown if len(shown) <= _LONGEST_CAPTION else f"..{shown[2 - _LONGEST_CAPTION :]}"
