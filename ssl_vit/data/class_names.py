"""Names of classes: what is the same name, and names that stand for several classes at once.

An image with several labels has them as one text, `dent;scratch`, so that a set's index has one
class number per image whatever the images are. No torch here.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

_INVISIBLE = "\ufeff\u200b"  # a byte order mark and a zero-width space, which no strip removes


def plain_name(name: str) -> str:
    """A class's name without invisible differences: surrounding or double blanks, Unicode form."""
    text = unicodedata.normalize("NFC", name)
    return " ".join("".join(" " if one in _INVISIBLE else one for one in text).split())


def split_name(name: str, separator: str) -> tuple[str, ...]:
    """The classes that a name stands for, each once; none if it is the separator alone."""
    return tuple(dict.fromkeys(filter(None, map(plain_name, name.split(separator)))))


def classes_in(names: Sequence[str], separator: str) -> tuple[str, ...]:
    """All classes that these names stand for, sorted."""
    return tuple(sorted({part for name in names for part in split_name(name, separator)}))


def membership(names: Sequence[str], classes: Sequence[str], separator: str) -> np.ndarray:
    """(L, C) bool, which of ``classes`` each of the L names stands for; others are left out."""
    place = {name: number for number, name in enumerate(classes)}
    table = np.zeros((len(names), len(classes)), dtype=bool)
    for row, name in enumerate(names):
        for part in split_name(name, separator):
            if part in place:
                table[row, place[part]] = True
    return table
