"""The images of a shard set that have a label, and classes of two sets by name. No torch here."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_vit.data.class_names import classes_in, membership, plain_name, split_name
from ssl_vit.data.index_file import NO_LABEL
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError

_PROBE_TEST_SHARE = 4  # one image in so many


def labeled_numbers(shards: ShardSet) -> np.ndarray:
    """(N,) sample numbers that have a label, in index order."""
    return np.flatnonzero(shards.labels != NO_LABEL)


def renumbered(theirs: ShardSet, ours: Sequence[str]) -> np.ndarray:
    """(N,) int64 class numbers, by ``ours``, of the labeled images of another set, in index order;
    −1 where ``ours`` has no such class.

    Args:
        theirs: Checked by :func:`check_labels`.
        ours: Names of classes.

    Raises:
        UserError: Two classes have one name, and only their numbers could tell them apart.
    """
    labels = theirs.labels[labeled_numbers(theirs)].astype(np.int64)
    if tuple(theirs.classes) == tuple(ours):
        return labels
    for names, whose in ((theirs.classes, theirs.source), (ours, "the training images")):
        twice = [name for name, count in Counter(map(plain_name, names)).items() if count > 1]
        if twice:
            raise UserError(
                f"several classes of {whose} are named {twice[0]}, and {theirs.source} numbers its "
                "classes differently",
                "give every class a different name, or index both sets with the same --classes "
                "file",
            )
    place = {plain_name(name): number for number, name in enumerate(ours)}
    return np.array([place.get(plain_name(name), -1) for name in theirs.classes])[labels]


def names_of_unknown(theirs: ShardSet, numbers: np.ndarray) -> list[str]:
    """Names of the classes that :func:`renumbered`, whose result ``numbers`` is, did not find."""
    unknown = theirs.labels[labeled_numbers(theirs)[numbers < 0]]
    return [theirs.classes[number] for number in np.unique(unknown).tolist()]


class MatchedLabels(NamedTuple):
    """The labels of a set's N labeled images, by the numbers of given classes."""

    labels: np.ndarray
    """(N,) int64, −1 where unknown; (N, C) bool with a separator."""
    known: np.ndarray
    """(N,) bool, whether all classes of an image are among those given."""
    unknown: list[str]
    """Names of the others."""


def match_labels(theirs: ShardSet, classes: Sequence[str], separator: str) -> MatchedLabels:
    """Match labels by their names.

    Args:
        theirs: Checked by :func:`check_labels`.
        classes: (C,) names.
        separator: What stands between the classes of an image that may be of several; empty: a
            label is one class.

    Raises:
        UserError: See :func:`renumbered`.
    """
    if not separator:
        numbers = renumbered(theirs, classes)
        return MatchedLabels(numbers, numbers >= 0, names_of_unknown(theirs, numbers))
    own, names = theirs.labels[labeled_numbers(theirs)], theirs.classes
    table = membership(names, classes, separator)
    whole = np.array([len(split_name(name, separator)) for name in names]) == table.sum(axis=1)
    present = [names[number] for number in np.unique(own).tolist()]
    unknown = sorted({*classes_in(present, separator)} - {*classes})
    return MatchedLabels(table[own], whole[own], unknown)


def check_labels(shards: ShardSet, least: int) -> None:
    """Refuse a set whose labels cannot be used.

    Args:
        shards: The set.
        least: Labeled images that are needed.

    Raises:
        UserError: No image has a label, too few have, or a label is outside of the classes.
    """
    labels = shards.labels[labeled_numbers(shards)]
    if not len(labels) or not shards.classes:
        raise UserError(
            f"no image of {shards.source} has a label",
            "pack a folder with one sub-folder per class:  ssl-vit shards pack IMAGES SHARDS",
        )
    if len(labels) < least:
        raise UserError(
            f"{shards.source} has {len(labels)} labeled images, at least {least} are needed",
            "use a larger set",
        )
    if labels.min() < 0 or labels.max() >= len(shards.classes):
        raise UserError(
            f"{shards.source} has a label outside its {len(shards.classes)} classes",
            f"pack the images again into {shards.source}",
        )


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class.

    Args:
        labels: (N,) class numbers.
        share: In (0, 1); of a class with two or more images, at least one is held out and one kept.

    Returns:
        Ascending numbers of the images that are kept, and of those held out; the same on every call
        and machine.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    # Not rng.permutation, whose algorithm numpy may change.
    order = np.argsort(rng.random(len(labels)), kind="stable")
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def hold_out_groups(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class as far as whole groups allow: a group is taken if the held
    numbers of images by class come closer to the wanted ones.

    Args:
        labels: (N,) class numbers from 0 on.
        groups: (N,) group numbers.
        share: In (0, 1); at least one image of every class with two or more is wanted, and one of
            every class is kept.

    Returns:
        As :func:`hold_out`; no group is in both.
    """
    totals = np.bincount(labels)
    wanted = np.where(totals > 1, np.maximum(1, np.round(share * totals)), 0)
    missing, left = wanted.astype(np.int64), totals.copy()
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:])
    rng = np.random.Generator(np.random.Philox(seed))
    held = np.zeros(len(labels), dtype=bool)
    for place in np.argsort(rng.random(len(members)), kind="stable").tolist():
        its, counts = np.unique(labels[members[place]], return_counts=True)
        is_closer = np.abs(missing[its] - counts).sum() < np.abs(missing[its]).sum()
        if is_closer and (counts < left[its]).all():
            held[members[place]] = True
            missing[its] -= counts
            left[its] -= counts
    return np.flatnonzero(~held), np.flatnonzero(held)


def choose_images(shards: ShardSet, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labeled images for an online probe's train and test sets: about the same share of every
    class, and the same images on every call and machine.

    Args:
        shards: Checked by :func:`check_labels`.
        most: Largest number of images, train and test together.

    Returns:
        Sample numbers of train and of test, disjoint; test may be empty. Every class of test is one
        of train: a class's only image goes to train, as no classifier could predict it in test.
    """
    all_labels = shards.labels
    rng = np.random.Generator(np.random.Philox(seed))
    # Ordered by the place in their class, so that any cut has all classes in their proportions.
    order = rng.permutation(np.flatnonzero(all_labels != NO_LABEL))
    labels = all_labels[order]
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    firsts = np.cumsum(counts) - counts
    place = np.empty(len(order))
    ranks = np.arange(len(order)) - firsts[labels[by_class]]
    place[by_class] = (ranks + 0.5) / counts[labels[by_class]]
    chosen = order[np.argsort(place, kind="stable")][:most]
    rng.shuffle(chosen)
    num_test = max(1, len(chosen) // _PROBE_TEST_SHARE)
    test, train = chosen[:num_test], chosen[num_test:]
    known = np.isin(all_labels[test], all_labels[train])
    return np.sort(np.concatenate([train, test[~known]])), np.sort(test[known])


def check_probed(shards: ShardSet, most: int) -> None:
    """Refuse a set on which an online probe would have nothing to measure.

    Args:
        shards: Checked by :func:`check_labels`.
        most: As for :func:`choose_images`.

    Raises:
        UserError: All labeled images are of one class, or no class has an image in both the
            probe's train and its test images.
    """
    labels = shards.labels[labeled_numbers(shards)]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"all labeled images of {shards.source} are of one class",
            "set monitor.labeled to a set with two or more classes, or leave it out",
        )
    if not len(choose_images(shards, most)[1]):
        raise UserError(
            f"{min(most, len(labels)):,} labeled images of {shards.source} in "
            f"{len(np.unique(labels)):,} classes: too few for a class to have one in train and one "
            "in test",
            "set monitor.labeled to a set with more images per class, or raise "
            "monitor.labeled_images",
        )
