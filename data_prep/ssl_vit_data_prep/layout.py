"""The meaning of the folders above images: wrappers, sets, classes. Pure functions of paths.

`IMAGES/data/train/cat/1.jpg` is in a wrapper, in the set `train`, in the class `cat`. A wrapper is
a single folder that holds two or more; folders further down belong to their class.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ssl_vit.errors import UserError
from ssl_vit.files import readable

SET_NAMES = ("train", "val", "test")
_SET_OF_WORD = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LISTED = 5


@dataclass(frozen=True)
class Layout:
    """The meaning of the folders of some paths."""

    base: str
    """Folder that holds the classes or sets, such as `data/`; empty for the top."""
    set_folders: dict[str, str]
    """Folder in ``base`` → set; empty if there are no sets."""
    inner: str
    """Folder that holds the classes in every set, such as `images/`; empty for the set's own."""
    notes: tuple[str, ...]

    def set_of(self, path: str) -> str:
        """Name of the set of an image; empty if there are no sets."""
        return self.set_folders.get(path.removeprefix(self.base).partition("/")[0], "")

    def class_of(self, path: str) -> str:
        """Name of the class of an image; empty if it is not in a class folder."""
        return class_name(self._below(path))

    def holds_classes(self, folder: str) -> bool:
        """Whether a folder is at the level of the class folders."""
        below = self._below(f"{folder}/")
        return below.count("/") == 1 and below != "/"

    def sets_among(self, folders: Iterable[str]) -> list[str]:
        """Names of sets among the folders at the level of the classes."""
        names = {self.class_of(f"{folder}/") for folder in folders}
        return sorted(name for name in names if set_of_word(name))

    def _below(self, path: str) -> str:
        """The path below the level of classes."""
        if not path.startswith(self.base):
            return ""
        below = path.removeprefix(self.base)
        if self.set_folders:
            name, _, below = below.partition("/")
            if name not in self.set_folders:
                return ""
        return below.removeprefix(self.inner) if below.startswith(self.inner) else ""


def count_folders(paths: Iterable[str]) -> dict[str, int]:
    """Folder → images directly in it, for :func:`find_layout`."""
    return dict(Counter(path.rpartition("/")[0] for path in paths))


def set_of_word(word: str) -> str:
    """The set with this name: `val` for "Validation"; empty for any other word."""
    return _SET_OF_WORD.get(word.strip().casefold(), "")


def class_name(path: str) -> str:
    """Name of the first folder of a path, spelled the same however "é" is encoded."""
    folder, slash, _ = path.partition("/")
    return unicodedata.normalize("NFC", readable(folder)) if slash else ""


def find_layout(counts: Mapping[str, int], may_split: bool = True) -> Layout:
    """Find the layout of some images.

    Args:
        counts: Folder, with forward slashes → images directly in it; empty for the top.
        may_split: Whether folders such as `train` and `val` are sets.

    Raises:
        UserError: Several of the folders are sets, and others beside them are not.
    """
    base = find_wrapper(counts, may_split)
    below = _inside(counts, base)
    set_folders = _find_sets(below, base) if may_split else {}
    inner = ""
    if set_folders:
        in_sets: Counter[str] = Counter()
        for name in set_folders:
            in_sets.update(_inside(below, f"{name}/"))
        inner = find_wrapper(in_sets, may_split=False)
    notes = [f"classes from the folders in {base or ''}"] if base and not set_folders else []
    if set_folders:
        listed = ", ".join(f"{base}{name}/" for name in set_folders)
        where = f"; classes from the folders in {inner}" if inner else ""
        notes.append(
            f"sets from the folders {listed} (--no-split-folders treats them as classes){where}"
        )
    elif may_split and (words := [name for name in _first_folders(below) if set_of_word(name)]):
        others = [name for name in _first_folders(below) if not set_of_word(name)]
        notes.append(
            f"{words[0]}/ is a class and not a set, because there are other folders beside it: "
            f"{list_some(others)}"
        )
    return Layout(base, set_folders, inner, tuple(notes))


def find_wrapper(counts: Mapping[str, int], may_split: bool = False) -> str:
    """The folder that holds the classes or sets, with its slash; empty for the top.

    Args:
        counts: Folder → images directly in it; empty for the top.
        may_split: Whether to stop above a folder such as `train`.
    """
    base = ""
    while True:
        below = _inside(counts, base)
        folders = _first_folders(below)
        if len(folders) != 1 or (may_split and set_of_word(folders[0])):
            return base
        if not _branches(_inside(below, f"{folders[0]}/"), may_split):
            return base
        base = f"{base}{folders[0]}/"


def list_some(names: Iterable[str]) -> str:
    """The first few names, and the number of others."""
    known = [readable(name) for name in names]
    more = f", and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
    return ", ".join(known[:_LISTED]) + more


def count_of(number: int, one: str, many: str = "") -> str:
    """ "1 image", "2,000 images"; ``many`` is an irregular plural."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _find_sets(counts: Mapping[str, int], base: str) -> dict[str, str]:
    """Folder → set, if all folders are sets."""
    folders = _first_folders(counts)
    sets = {folder: name for folder in folders if (name := set_of_word(folder))}
    if len(sets) == len(folders):
        return sets
    if len(set(sets.values())) > 1:
        others = [f"{base}{folder}/" for folder in folders if folder not in sets]
        raise UserError(
            f"{', '.join(f'{base}{folder}/' for folder in sets)} are sets, but there are images in "
            f"{list_some(others)} beside them",
            "move those elsewhere, or use --no-split-folders to treat every folder as a class",
        )
    return {}


def _branches(counts: Mapping[str, int], may_split: bool) -> bool:
    """Whether a folder is a wrapper: most of its images are in two or more folders in it, or in the
    folder of a set, perhaps further down.
    """
    own = counts.get("", 0)
    if own >= sum(counts.values()) - own:
        return False
    folders = _first_folders(counts)
    if len(folders) > 1 or (may_split and set_of_word(folders[0])):
        return True
    return _branches(_inside(counts, f"{folders[0]}/"), may_split)


def _inside(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The folders in one of them by their relative path; the folder itself is the empty string."""
    found = {
        folder[len(prefix) :]: count
        for folder, count in counts.items()
        if folder.startswith(prefix)
    }
    return found | {"": counts[prefix[:-1]]} if prefix and prefix[:-1] in counts else found


def _first_folders(counts: Mapping[str, int]) -> list[str]:
    return sorted({folder.partition("/")[0] for folder in counts} - {""})
