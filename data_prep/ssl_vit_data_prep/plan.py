"""Which image goes under which key into which shard: pure functions of names, sizes and a seed.

Everything is settled before the first byte is written, so any number of processes writes the same
shards.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from ssl_vit.data.order import permutation
from ssl_vit.data.shards import NO_LABEL
from ssl_vit.errors import UserError
from ssl_vit_data_prep.scan import ImageFile, ending_of

BLOCK = 512
"""Bytes a tar block has; headers and contents are padded to it."""
_LONGEST_NAME = 100  # bytes of a name that fit into a tar header
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One image and where it belongs."""

    path: str
    """Relative to the image folder."""
    key: str
    """WebDataset key; unique in the set."""
    ending: str
    label: int
    """Class number, −1 for none."""


@dataclass(frozen=True)
class PackPlan:
    """What a set of shards will hold."""

    classes: tuple[str, ...]
    shards: tuple[tuple[PlannedSample, ...], ...]
    num_bytes: int
    """Of all members together, if no file is refused."""


def plan_shards(files: Sequence[ImageFile], shard_bytes: int, seed: int) -> PackPlan:
    """Shuffle the images and cut the row into shards.

    Args:
        files: Sorted by path.
        shard_bytes: A shard ends before the sample that would make it larger, if it has one.
        seed: Of the shuffle, which mixes the classes within every shard.
    """
    folders = class_folders([file.path for file in files])
    labels = {folder: label for label, folder in enumerate(folders)}
    keys = assign_keys([file.path for file in files])
    shards: list[list[PlannedSample]] = [[]]
    filled = total = 0
    for place in permutation(len(files), seed):
        file = files[place]
        label = labels.get(file.path.partition("/")[0], NO_LABEL)
        sample = PlannedSample(file.path, keys[place], ending_of(file.path), label)
        size = tar_bytes(sample, file.num_bytes)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(sample)
        filled += size
        total += size
    classes = tuple(readable(folder) for folder in folders)
    return PackPlan(classes, tuple(tuple(shard) for shard in shards), total)


def class_folders(paths: Sequence[str]) -> list[str]:
    """First-level folders that hold images, sorted; none if any image lies directly at the top."""
    if any("/" not in path for path in paths):
        return []
    return sorted({path.partition("/")[0] for path in paths})


def assign_keys(paths: Sequence[str]) -> list[str]:
    """A unique WebDataset key for every path.

    The key is the path without its ending. Where two would be the same (`a.jpg` and `a.png`), the
    later one in the order of ``paths`` gets its ending appended, then a number.
    """
    taken: set[str] = set()
    keys: list[str] = []
    for path in paths:
        plain = key = safe_key(path)
        numbers = count(2)
        if key in taken:
            plain = key = f"{plain}_{ending_of(path)}"
        while key in taken:
            key = f"{plain}_{next(numbers)}"
        taken.add(key)
        keys.append(key)
    return keys


def safe_key(path: str) -> str:
    """The path without its ending, as webdataset will read it back from a tar.

    webdataset cuts a member's name at the base name's first dot, cannot match a line break, and
    skips everything under a top folder named like `__this__`.
    """
    folder, slash, base = readable(os.path.splitext(path)[0]).rpartition("/")
    key = re.sub(r"[\x00-\x1f\x7f]", "_", f"{folder}{slash}{base.replace('.', '_')}")
    return f"_{key.lstrip('_')}" if re.match(r"__[^/]*__/", key) else key


def readable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are none are spelled out as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def tar_bytes(sample: PlannedSample, num_bytes: int) -> int:
    """Bytes that a sample's members take in a tar."""
    size = _header_bytes(f"{sample.key}.{sample.ending}") + padded(num_bytes)
    if sample.label != NO_LABEL:
        size += _header_bytes(f"{sample.key}.cls") + BLOCK
    return size


def padded(num_bytes: int) -> int:
    """The next multiple of a tar block."""
    return -(-num_bytes // BLOCK) * BLOCK


def parse_bytes(text: str, option: str) -> int:
    """Bytes from "268435456", "256MiB", "256M" or "1.5 GB".

    K, M and G count in thousands; Ki, Mi and Gi in 1024s.

    Raises:
        UserError: Anything else, or less than one byte; names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?|)B?", text.strip().upper())
    num_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if num_bytes < 1:
        raise UserError(
            f"{option} '{text}' is no size in bytes", f"write for example  {option} 256MiB"
        )
    return num_bytes


def _header_bytes(name: str) -> int:
    length = len(name.encode())
    # GNU's long names: one more header, whose content is the name and a closing zero.
    return BLOCK if length <= _LONGEST_NAME else 2 * BLOCK + padded(length + 1)
