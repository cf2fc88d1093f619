"""The validation images of a run that learns from labels: shards of their own, or held out from
the training images. No torch here.
"""

from typing import NamedTuple

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.class_names import membership
from ssl_vit.data.labels import (
    check_labels,
    hold_out,
    hold_out_groups,
    labeled_numbers,
    match_labels,
)
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.subset import SubsetOfShards
from ssl_vit.errors import UserError
from ssl_vit.run.config import RunConfig
from ssl_vit.units import format_bytes

_NAMED = 10  # classes in a message


class ValidationImages(NamedTuple):
    """Which images are for validation."""

    shards: ShardSet
    """The set that has them."""
    numbers: np.ndarray
    """(N,) their sample numbers there."""
    labels: np.ndarray
    """(N,) int64 their classes, by the numbers of the training set; (N, C) bool if an image may be
    of several.
    """
    num_classes: int
    """C, of the training set."""


class Split(NamedTuple):
    """The data of a run."""

    train: ShardSet | None
    """The training images; None if they are synthetic."""
    validation: ValidationImages | None
    """None: the run is not validated."""
    notes: tuple[str, ...] = ()
    """What to say of it."""


def split_data(config: RunConfig, shards: ShardSet | None, cache: ShardCache) -> Split:
    """Open the validation images, or hold some of the training images out.

    Args:
        shards: The training images; None if they are synthetic.

    Raises:
        UserError: Validation images are missing, have no labels, or other classes.
    """
    wanted = config.objective.validating
    if wanted is None or shards is None:
        return Split(shards, None)
    if wanted.shards:
        found, whence = _own_set(config, shards, cache), wanted.shards
        train: ShardSet = shards
    else:
        classes, separator = _classes(config, shards)
        table = membership(shards.classes, classes, separator) if separator else None
        groups = shards.groups
        # Multi-label images are held out at random: most combinations of classes are rare.
        strata = shards.labels if table is None else np.zeros_like(shards.labels)
        each, whole = "of each class" if table is None else "of them", ""
        if groups is None:
            kept, held = hold_out(strata, wanted.held_out)
        else:
            kept, held = hold_out_groups(strata, groups, wanted.held_out)
            some, every = len(np.unique(groups[held])), len(np.unique(groups))
            whole = f"; {some:,} of {every:,} groups, each whole"
        if not len(held):
            why = "no class with two images"
            if groups is not None:
                why = f"groups of which none fits into {wanted.held_out:.0%} of its images"
            raise UserError(
                f"{shards.source} has {why}: none can be held out",
                "set a larger objective.held_out, give  objective.validation=SHARDS,  or set "
                "objective.held_out=0",
            )
        train = SubsetOfShards(shards, kept)
        own = shards.labels[held].astype(np.int64)
        labels = own if table is None else table[own]
        found = ValidationImages(shards, held, labels, len(classes))
        whence = f"held out of {len(shards.labels):,} ({wanted.held_out:.0%} {each}{whole})"
    height, width = config.backbone.height_width
    memory = format_bytes(len(found.numbers) * height * width * 3)
    notes = [f"validation: {len(found.numbers):,} images, {whence}; {memory} of pixels in memory"]
    notes += _without_images(config, found)
    if wanted.shards and (unlabeled := found.shards.num_samples - len(found.numbers)):
        notes.append(f"{unlabeled:,} images of {wanted.shards} have no label and are left out")
    return Split(train, found, tuple(notes))


def _without_images(config: RunConfig, found: ValidationImages) -> list[str]:
    """A note on classes that have no validation image, so that nothing is known of them."""
    counts = (
        np.bincount(found.labels, minlength=found.num_classes)
        if found.labels.ndim == 1
        else found.labels.sum(axis=0)
    )
    names, sizes = config.objective.class_sizes()
    absent = [
        name for name, size, count in zip(names, sizes, counts, strict=False) if size and not count
    ]
    if not absent:
        return []
    more = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
    return [f"no validation image of {', '.join(absent[:_NAMED])}{more}"]


def _own_set(config: RunConfig, train: ShardSet, cache: ShardCache) -> ValidationImages:
    wanted = config.objective.validating
    assert wanted is not None
    source, theirs = wanted.shards, open_shards(wanted.shards, cache)
    check_labels(theirs, least=1)
    contents = {(shard.sha256, shard.records_sha256) for shard in train.shards}
    shared = [each for each in theirs.shards if (each.sha256, each.records_sha256) in contents]
    if shared:
        raise UserError(
            f"{source} and {train.source} have shard {shared[0].name} in common",
            "give validation images that are not trained on, or none: a part of the training "
            "images is held out then",
        )
    if theirs.values and not config.data.values:
        raise UserError(
            f"{source} has images of more than 8 bits, and {train.source} has not",
            "give validation images of the same kind",
        )
    classes, separator = _classes(config, train)
    labels, _, unknown = match_labels(theirs, classes, separator)
    if unknown:
        raise UserError(
            f"{source} has images of {', '.join(unknown[:10])}, "
            f"and {train.source} has no such class ({', '.join(classes[:10])})",
            "give validation images of the same classes",
        )
    return ValidationImages(theirs, labeled_numbers(theirs), labels, len(classes))


def _classes(config: RunConfig, train: ShardSet) -> tuple[tuple[str, ...], str]:
    """The classes that are learned, and what separates those of an image of several."""
    separator = config.objective.no_class_label
    return (config.objective.class_sizes()[0] if separator else tuple(train.classes)), separator
