"""The plan of a pack: the set, shard and key of every image, as pure functions of names, sizes and
a seed.

Everything is decided before the first byte is written, so any number of processes writes the same
shards, and a killed pack can resume.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ssl_vit.data.index_file import NO_LABEL
from ssl_vit.data.order import permutation
from ssl_vit.files import readable
from ssl_vit_data_prep.keys import assign_keys
from ssl_vit_data_prep.layout import SET_NAMES
from ssl_vit_data_prep.scan import ImageFile, ending_of
from ssl_vit_data_prep.tar import member_bytes

# Most images measured for a set's statistics, and most pictures on its contact sheet.
STATISTICS_IMAGES = 512
SHEET_IMAGES = 64
NO_GROUP = -1
_TRIES = 50  # numbers of pieces that are tried for an even division


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One image and its place."""

    path: str
    """Relative to the image folder."""
    key: str
    """WebDataset key; unique over all sets of a pack."""
    ending: str
    label: int
    """Class number, −1 for none."""
    extras: str
    """JSON text of a manifest's further columns; empty for none."""
    is_measured: bool
    """Whether it counts in the set's statistics."""
    is_shown: bool
    """Whether it is on the contact sheet."""
    group: int = NO_GROUP
    """Number of its group, −1 if images have none."""


@dataclass(frozen=True)
class PackPlan:
    """All sets and shards of a pack."""

    classes: tuple[str, ...]
    sets: dict[str, tuple[tuple[PlannedSample, ...], ...]]
    """Name of a sub-folder (empty: the folder itself) → the samples of each of its shards."""
    num_bytes: int
    """Size of all tar members, if no file is refused or made smaller."""


@dataclass(frozen=True)
class Classes:
    """The label of every image, and the extras of some."""

    names: tuple[str, ...]
    labels: dict[str, int]
    """Path → class number; images without one are missing."""
    extras: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Division:
    """Which images go to which set."""

    val_fraction: float = 0.0
    """Share of the images outside of `test` that go to `val` at random; 0 for none."""
    sets: Mapping[str, str] = field(default_factory=dict)
    """Path → given set, for all images or none; with a ``val_fraction`` never `val`."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Path → group, whose images go to the same set; images without a group are missing."""

    @property
    def names(self) -> list[str]:
        """Names of all sets; a single empty name if the images are not divided."""
        names = {*self.sets.values(), *(("train", "val") if self.val_fraction else ())}
        return [name for name in SET_NAMES if name in names] or [""]

    def set_of(self, path: str, key: str) -> str:
        """Name of the set of one image."""
        given = self.sets.get(path, "")
        if not self.val_fraction or given == "test":
            return given
        return set_of(self.groups.get(path) or key, self.val_fraction)


def no_classes() -> Classes:
    """The classes of images without labels."""
    return Classes((), {}, {})


def plan_shards(
    files: Sequence[ImageFile],
    classes: Classes,
    shard_bytes: float,
    seed: int,
    division: Division,
) -> PackPlan:
    """Shuffle the images, split them into sets and cut each set's row into shards.

    Args:
        files: The images, sorted by path.
        shard_bytes: Largest size of a shard, unless a single sample is larger.
        seed: Seed of the shuffle, which mixes the classes within every shard.
        division: Which images go to which set.
    """
    keys = assign_keys(file.path for file in files)
    rows: dict[str, list[int]] = {name: [] for name in division.names}
    for place in permutation(len(files), seed):
        rows[division.set_of(files[place].path, keys[place])].append(int(place))
    group_of = _number_groups(files, division)
    sets: dict[str, tuple[tuple[PlannedSample, ...], ...]] = {}
    total = 0
    for name, row in rows.items():
        samples = [
            _plan_sample(files[place], keys[place], classes, number, len(row), group_of)
            for number, place in enumerate(row)
        ]
        sizes = [
            sample_bytes(sample, files[place].num_bytes)
            for sample, place in zip(samples, row, strict=True)
        ]
        ends = even_cuts(sizes, shard_bytes)
        sets[name] = tuple(tuple(samples[start:end]) for start, end in pairwise(ends))
        total += sum(sizes)
    return PackPlan(classes.names, sets, total)


def _plan_sample(
    file: ImageFile,
    key: str,
    classes: Classes,
    place: int,
    num_images: int,
    groups: Mapping[str, int],
) -> PlannedSample:
    extras = classes.extras.get(file.path)
    return PlannedSample(
        file.path,
        key,
        ending_of(file.path),
        classes.labels.get(file.path, NO_LABEL),
        json.dumps(extras, ensure_ascii=False, sort_keys=True) if extras else "",
        is_measured=place % -(-num_images // STATISTICS_IMAGES) == 0,
        is_shown=place % -(-num_images // SHEET_IMAGES) == 0,
        group=groups.get(file.path, NO_GROUP),
    )


def _number_groups(files: Sequence[ImageFile], division: Division) -> dict[str, int]:
    """Path → number of its group, an image without one being alone; empty without groups."""
    if not division.groups:
        return {}
    numbers = {name: number for number, name in enumerate(sorted(set(division.groups.values())))}
    found = {}
    for place, file in enumerate(files):
        name = division.groups.get(file.path)
        found[file.path] = len(numbers) + place if name is None else numbers[name]
    return found


def even_cuts(sizes: Sequence[int], most: float) -> list[int]:
    """Where to cut a row into pieces of about the same size, so that processes finish together.

    Args:
        sizes: Bytes of the samples, in order.
        most: Most bytes of a piece, unless a single sample has more.

    Returns:
        The places of the cuts, including both ends of the row.
    """
    ends = np.cumsum(sizes)
    starts = ends - np.asarray(sizes)
    if not len(ends):
        return [0]
    count = max(1, int(-(-int(ends[-1]) // most)))
    # Samples are not divided, so a few more pieces than the sum requires may be needed.
    for pieces in range(count, count + _TRIES):
        goals = np.arange(1, pieces) * (int(ends[-1]) / pieces)
        cuts = np.unique([0, *ends.searchsorted(goals, side="right"), len(ends)])
        filled = ends[cuts[1:] - 1] - starts[cuts[:-1]]
        if ((filled <= most) | (np.diff(cuts) == 1)).all():
            return cuts.tolist()
    cuts, filled = [0], 0
    for place, size in enumerate(sizes):
        if place > cuts[-1] and filled + size > most:
            cuts.append(place)
            filled = 0
        filled += size
    return [*cuts, len(sizes)]


def set_of(key: str, val_fraction: float) -> str:
    """`train` or `val` by a hash: an image keeps its set when others are added or removed.

    Args:
        key: Key of the image, or the name of its group.
        val_fraction: 0 makes one set, named by the empty string.
    """
    if not val_fraction:
        return ""
    word = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "val" if word < val_fraction * 2**64 else "train"


def sample_bytes(sample: PlannedSample, num_bytes: int) -> int:
    """Bytes of a sample's members in a tar."""
    size = member_bytes(f"{sample.key}.{sample.ending}", num_bytes)
    if sample.label != NO_LABEL:
        size += member_bytes(f"{sample.key}.cls", 1)
    if sample.extras:
        size += member_bytes(f"{sample.key}.json", len(sample.extras.encode()))
    return size


def digest(files: Sequence[ImageFile], settings: object) -> str:
    """32 hex digits of everything that determines the output: an unfinished pack resumes only if
    they are the same.
    """
    state = hashlib.sha256(repr(settings).encode())
    for file in files:
        state.update(f"{readable(file.path)}\0{file.num_bytes}\0{file.changed_ns}\n".encode())
    return state.hexdigest()[:32]
