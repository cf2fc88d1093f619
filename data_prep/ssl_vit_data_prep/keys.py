"""WebDataset keys: the name that all files of a sample share in a tar."""

import os
import re
from collections.abc import Iterable
from itertools import count

from ssl_vit.files import readable
from ssl_vit_data_prep.scan import ending_of


def assign_keys(paths: Iterable[str]) -> list[str]:
    """A unique key for every path.

    The key is the path without its ending. If two would be the same (`a.jpg` and `a.png`), the
    later one in the order of ``paths`` gets its ending appended, then a number.
    """
    taken: set[str] = set()
    return [make_unique(safe_key(path), ending_of(path), taken) for path in paths]


def make_unique(key: str, suffix: str, taken: set[str]) -> str:
    """The key, with the suffix and then a number if it is taken; adds it to those taken."""
    if key in taken:
        plain = key = f"{key}_{suffix}" if suffix else key
        numbers = count(2)
        while key in taken:
            key = f"{plain}_{next(numbers)}"
    taken.add(key)
    return key


def safe_key(path: str) -> str:
    """The path without its ending, as webdataset will read it back from a tar.

    webdataset cuts a member's name at the base name's first dot, cannot match a line break, and
    skips everything under a top folder named like `__this__`.
    """
    folder, slash, base = readable(os.path.splitext(path)[0]).rpartition("/")
    key = re.sub(r"[\x00-\x1f\x7f]", "_", f"{folder}{slash}{base.replace('.', '_')}")
    return f"_{key.lstrip('_')}" if re.match(r"__[^/]*__/", key) else key
