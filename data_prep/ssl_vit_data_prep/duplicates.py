"""Images of one set with the same pixels, by a digest of each decoded image. No torch here.

Decoded, since different files may hold the same picture, in another lossless format or with other
metadata. A copy that was compressed again or resized has other pixels and is not found.
"""

from dataclasses import dataclass

import numpy as np

from ssl_vit.data.index_file import NO_LABEL
from ssl_vit.data.pixel_digest import DIGEST_BYTES, is_single_color
from ssl_vit.data.shards import ShardSet
from ssl_vit_data_prep.layout import count_of

_LISTED = 10


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Groups of images with the same pixels, those with different labels first."""

    groups: tuple[np.ndarray, ...]
    """Sample numbers of each group, two or more, ascending."""
    num_images: int
    """Number of images in all groups."""
    num_conflicting_images: int
    """Number of images in groups whose labeled images have different labels."""
    num_conflicting: int
    """Number of such groups, which come first in ``groups``."""
    num_single_color: int
    """Number of images in groups of a single color, such as black tiles."""


def find_duplicates(digests: np.ndarray, labels: np.ndarray) -> Duplicates:
    """Group images by digest.

    Args:
        digests: (N, 16) uint8, see ``data.pixel_digest``; zeros for an image that has none.
        labels: (N,) class numbers, −1 for none.
    """
    keys = np.ascontiguousarray(digests).view(np.dtype([("high", ">u8"), ("low", ">u8")]))[:, 0]
    has = np.flatnonzero((keys["high"] != 0) | (keys["low"] != 0))
    order = has[np.lexsort((has, keys["low"][has], keys["high"][has]))]
    differs = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    bounds = np.concatenate([[0], differs, [len(order)]])
    repeated = np.flatnonzero(np.diff(bounds) > 1)
    groups = [order[bounds[place] : bounds[place + 1]] for place in repeated]
    conflicting = [group for group in groups if _num_labels(labels[group]) > 1]
    others = [group for group in groups if _num_labels(labels[group]) <= 1]
    blank = [group for group in groups if is_single_color(digests[group[0]].tobytes())]
    return Duplicates(
        (*sorted(conflicting, key=_first), *sorted(others, key=_first)),
        sum(map(len, groups)),
        sum(map(len, conflicting)),
        len(conflicting),
        sum(map(len, blank)),
    )


def describe_duplicates(found: Duplicates, shards: ShardSet) -> list[str]:
    """Lines for the user: the counts, and the first pairs by key."""
    if not found.groups:
        return ["duplicates  none: no two images have the same pixels"]
    lines = [
        f"duplicates  {found.num_images:,} images have the same pixels as another one, in "
        f"{count_of(len(found.groups), 'group')}"
    ]
    if found.num_conflicting:
        lines.append(
            f"            {found.num_conflicting_images:,} of them have different labels, in "
            f"{count_of(found.num_conflicting, 'group')}"
        )
    if found.num_single_color:
        lines.append(f"            {found.num_single_color:,} of them have a single color")
    lines += [_describe_group(group, shards) for group in found.groups[:_LISTED]]
    if len(found.groups) > _LISTED:
        lines.append(f"  … and {count_of(len(found.groups) - _LISTED, 'more group')}")
    return lines


def empty_digests(num_images: int) -> np.ndarray:
    """(N, 16) uint8 zeros, to be filled."""
    return np.zeros((num_images, DIGEST_BYTES), np.uint8)


def _describe_group(group: np.ndarray, shards: ShardSet) -> str:
    pair = group[:2].tolist()
    labels = {each: int(shards.record(each)["label"]) for each in group.tolist()}
    labeled = [each for each, label in labels.items() if label != NO_LABEL]
    others = [each for each in labeled if labels[each] != labels[labeled[0]]]
    conflict = ""
    if others:
        pair = [labeled[0], others[0]]
        conflict = f"  (labels {' and '.join(_class_name(shards, labels[each]) for each in pair)})"
    named = [f"{shards.shards[shards.shard_of(each)].name}: {shards.key(each)}" for each in pair]
    more = f", and {len(group) - 2:,} more" if len(group) > 2 else ""
    return f"  {' = '.join(named)}{more}{conflict}"


def _class_name(shards: ShardSet, label: int) -> str:
    return shards.classes[label] if 0 <= label < len(shards.classes) else str(label)


def _num_labels(labels: np.ndarray) -> int:
    return len(np.unique(labels[labels != NO_LABEL]))


def _first(group: np.ndarray) -> int:
    return int(group[0])
