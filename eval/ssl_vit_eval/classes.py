"""Matching the classes of train and test: by name, never by number. No torch here.

Class numbers depend on how a set was made, so the same number may be another class. Names that
differ only in blanks or in Unicode form (macOS writes é as two characters) are one class. Classes
without labeled images are ignored.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssl_vit.data.class_names import plain_name
from ssl_vit.data.labels import labeled_numbers
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError

_LISTED = 5  # names in a message

# Equal for two names of one class: the normalized name, and the count of earlier equal names.
_Key = tuple[str, int]


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """The images of one set that are used."""

    numbers: np.ndarray
    """(N,) sample numbers, ascending."""
    labels: np.ndarray
    """(N,) int64 class numbers in the classes of the evaluation."""


@dataclass(frozen=True, eq=False)
class MatchedClasses:
    """The classes of an evaluation, and both sets' images numbered by them."""

    names: tuple[str, ...]
    """(C,) names of train's classes that have images, in train's order and spelling."""
    train: LabeledImages
    test: LabeledImages
    notes: tuple[str, ...]
    """Notes on the matching, a sentence each."""


def match_classes(train: ShardSet, test: ShardSet, known_only: bool) -> MatchedClasses:
    """Give both sets the same class numbers.

    Args:
        train, test: Checked by ``data.labels.check_labels``.
        known_only: Leave out test images of classes without train images; otherwise they are
            refused, since no classifier could predict their class.

    Raises:
        UserError: The two have no class in common; test has images of other classes; or several
            classes of a set have one name and the other set numbers them differently.
    """
    train_numbers, test_numbers = labeled_numbers(train), labeled_numbers(test)
    train_labels, test_labels = train.labels[train_numbers], test.labels[test_numbers]
    alike = train.classes == test.classes
    if not alike:
        _check_namesakes(train, train_labels)
        _check_namesakes(test, test_labels)
    train_keys, test_keys = _keys(train.classes, alike), _keys(test.classes, alike)
    names: dict[_Key, str] = {}
    for number in np.unique(train_labels).tolist():
        names.setdefault(train_keys[number], train.classes[number])
    number_of = {key: number for number, key in enumerate(names)}
    of_train = np.array([number_of.get(key, -1) for key in train_keys], dtype=np.int64)
    of_test = np.array([number_of.get(key, -1) for key in test_keys], dtype=np.int64)
    matched = of_test[test_labels]
    known = matched >= 0
    notes = _spelling_notes(train.classes, test.classes, train_keys, test_keys)
    if not known.all():
        unknown = _count_by_name(test.classes, test_labels[~known])
        untested = np.bincount(matched[known], minlength=len(names)) == 0
        only_train = [name for name, alone in zip(names.values(), untested, strict=True) if alone]
        _check_unknown(unknown, len(known), only_train, known_only)
        notes.append(
            f"{(~known).sum():,} test images of classes without train images are left out: "
            f"{_listed(unknown)}."
        )
    notes += _absence_notes(list(names.values()), matched[known])
    return MatchedClasses(
        tuple(names.values()),
        LabeledImages(train_numbers, of_train[train_labels]),
        LabeledImages(test_numbers[known], matched[known]),
        tuple(notes),
    )


def _keys(classes: Sequence[str], by_number: bool) -> list[_Key]:
    """A key for each class; with ``by_number`` classes of the same name stay separate."""
    seen: Counter[str] = Counter()
    keys = []
    for name in classes:
        keys.append((plain_name(name), seen[name] if by_number else 0))
        seen[name] += 1
    return keys


def _check_namesakes(shards: ShardSet, labels: np.ndarray) -> None:
    """Refuse classes with images and the same name if numbers cannot distinguish them."""
    counts = Counter(shards.classes[number] for number in np.unique(labels).tolist())
    if namesakes := [name for name, count in counts.items() if count > 1]:
        raise UserError(
            f"several classes of {shards.source} are named {namesakes[0]}, and --train and --test "
            "number their classes differently",
            "give every class a different name, or index both sets with the same --classes file",
        )


def _check_unknown(
    unknown: Mapping[str, int], num_test: int, only_train: Sequence[str], known_only: bool
) -> None:
    """Refuse test images of classes without train images, unless they may be left out."""
    count = sum(unknown.values())
    sides = [f"only in train: {', '.join(_first(only_train))}"] if only_train else []
    differ = "; ".join([*sides, f"only in test: {_listed(unknown)}"])
    if count == num_test:
        raise UserError(
            f"--train and --test have no class in common: {differ}",
            "use sets whose classes have the same names",
        )
    if not known_only:
        raise UserError(
            f"{count:,} of {num_test:,} test images are of classes without train images: {differ}",
            "use a --train set with these classes, or --known-classes-only to leave these test "
            "images out",
        )


def _spelling_notes(
    train: Sequence[str], test: Sequence[str], train_keys: Sequence[_Key], test_keys: Sequence[_Key]
) -> list[str]:
    spellings: dict[_Key, list[str]] = {}
    for name, key in zip((*train, *test), (*train_keys, *test_keys), strict=True):
        if name not in spellings.setdefault(key, []):
            spellings[key].append(name)
    several = [names for names in spellings.values() if len(names) > 1]
    notes = []
    if several:
        pairs = ", ".join(" = ".join(map(ascii, names)) for names in several[:_LISTED])
        more = f" and {len(several) - _LISTED:,} more" if len(several) > _LISTED else ""
        notes.append(
            f"Classes whose names differ only in blanks or Unicode form are one: {pairs}{more}."
        )
    if namesakes := sorted({name for (name, place) in train_keys if place}):
        notes.append(
            f"Several classes are named {', '.join(_first(namesakes))}; they are distinguished by "
            "number, since both sets have the same list of classes."
        )
    return notes


def _absence_notes(names: Sequence[str], test_labels: np.ndarray) -> list[str]:
    present = np.bincount(test_labels, minlength=len(names)) > 0
    if present.all():
        return []
    absent = [name for name, is_there in zip(names, present, strict=True) if not is_there]
    return [
        f"No test images of {len(absent):,} of train's {len(names):,} classes: "
        f"{', '.join(_first(absent))}. Balanced accuracy and macro-F1 are over the other "
        f"{present.sum():,}."
    ]


def _count_by_name(classes: tuple[str, ...], labels: np.ndarray) -> dict[str, int]:
    numbers, counts = np.unique(labels, return_counts=True)
    found: Counter[str] = Counter()
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        found[classes[number]] += count
    return dict(found)


def _listed(counts: Mapping[str, int]) -> str:
    """The first few classes with their numbers of images."""
    return ", ".join(_first([f"{name} ({count:,})" for name, count in counts.items()]))


def _first(names: Sequence[str]) -> list[str]:
    more = [f"and {len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return [*names[:_LISTED], *more]
