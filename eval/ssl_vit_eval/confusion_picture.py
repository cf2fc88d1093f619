"""A confusion matrix as a picture. No torch here."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CELL, _MARGIN = 44, 12
_MOST_NAMED = 60  # classes; of more, cells have neither names nor counts
_SMALL_CELL = 8
_BLUE = np.array([8, 48, 107])
_NO_CHARACTER = "\uffff"  # by definition; drawn as a box


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Rows: class; columns: predicted class. The darker, the larger the share of the row.

    Args:
        confusion: (C, C) counts.
        names: (C,) of the classes. The font has the letters of English: accents are left out, and a
            name in another script becomes `class 3`, counted from 0.
    """
    is_named = len(names) <= _MOST_NAMED
    cell = _CELL if is_named else _SMALL_CELL
    font = ImageFont.load_default(13)
    written = [_drawable(name, font) or f"class {number}" for number, name in enumerate(names)]
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in written]
    lengths = [int(font.getlength(label)) for label in labels] if is_named else [0]
    corner = max(*lengths, 130 * is_named) + 2 * _MARGIN  # with room for the caption
    side = corner + cell * len(names) + _MARGIN
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(*confusion.shape):
        share = float(shares[row, column])
        left, top = corner + column * cell, corner + row * cell
        color = tuple(round(255 + share * (each - 255)) for each in _BLUE.tolist())
        draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=color)
        if is_named and confusion[row, column]:
            center, ink = (left + cell // 2 - 1, top + cell // 2 - 1), "white"
            text = f"{confusion[row, column]:,}"
            draw.text(center, text, ink if share > 0.45 else "black", font, anchor="mm")
    if is_named:
        draw.text((_MARGIN // 2, _MARGIN // 2), "rows: class\ncolumns: predicted", "gray", font)
        for place, label in enumerate(labels):
            middle = corner + place * cell + cell // 2
            draw.text((corner - _MARGIN, middle), label, "black", font, anchor="rm")
            _write_upright(picture, label, font, middle, corner - _MARGIN)
    return picture


def _drawable(name: str, font: Font) -> str:
    """The name without accents and line breaks; empty if the font still lacks a letter of it."""
    plain = "".join(
        each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each)
    )
    plain = " ".join(plain.split())
    box = _drawn(_NO_CHARACTER, font)
    return "" if any(_drawn(each, font) == box for each in set(plain)) else plain


def _drawn(character: str, font: Font) -> bytes:
    picture = Image.new("L", (20, 20))
    ImageDraw.Draw(picture).text((0, 0), character, 255, font)
    return picture.tobytes()


def _write_upright(picture: Image.Image, text: str, font: Font, middle: int, bottom: int) -> None:
    """Text that reads from bottom to top, ending above the columns."""
    length = int(font.getlength(text)) + 2
    strip = Image.new("RGB", (length, 20), "white")
    ImageDraw.Draw(strip).text((0, 10), text, "black", font, anchor="lm")
    turned = strip.rotate(90, expand=True)
    picture.paste(turned, (middle - turned.width // 2, bottom - turned.height))
