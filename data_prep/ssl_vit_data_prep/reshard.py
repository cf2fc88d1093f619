"""Shards of another size or number, with the same samples in a new order.

Every file of a sample moves with it. Samples are read at random from the old shards and written in
the order of the new ones, so memory holds their offsets and never their pixels.
"""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import (
    SAMPLE_RECORD,
    Index,
    Shard,
    describe_shard,
    read_index,
    write_index,
)
from ssl_vit.data.order import permutation
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.urls import is_local
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.units import format_bytes
from ssl_vit_data_prep.finished_shards import FinishedShards, WrittenShard
from ssl_vit_data_prep.keys import make_unique
from ssl_vit_data_prep.plan import digest, even_cuts
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.tar import HashedTar, member_bytes
from ssl_vit_data_prep.tar_images import HashingReader, UnsortedError, walk_samples
from ssl_vit_data_prep.tar_labels import LabelRule
from ssl_vit_data_prep.target import (
    check_apart,
    check_no_set,
    check_space,
    check_target,
    remove_partials,
    remove_set,
)
from ssl_vit_data_prep.workers import count_done, run_tasks

_MOST_OPEN = 200  # old shards open per process; systems allow 256 files or more


@dataclass(frozen=True, slots=True)
class MovedFile:
    """One file of a sample: its old place and its new name."""

    name: str
    offset: int
    length: int
    label: int | None
    """Label of an image in the index; None for all other files."""
    group: int | None = None
    """Its group there, if there are groups."""


@dataclass(frozen=True, slots=True)
class MovedSample:
    """One sample and its files."""

    shard: str
    """Path of the old tar."""
    files: tuple[MovedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its files in a tar."""
        return sum(member_bytes(file.name, file.length) for file in self.files)


@dataclass(frozen=True)
class ListTask:
    """An old shard that will be listed."""

    path: Path
    shard: Shard
    records: np.ndarray
    groups: np.ndarray | None
    """(num_samples,) of its records, if there are groups."""


@dataclass(frozen=True)
class WriteTask:
    """A new shard that will be written."""

    target: Path
    samples: tuple[MovedSample, ...]
    finished: FinishedShards


def reshard(
    source: str,
    folder: Path,
    shard_bytes: int,
    num_shards: int,
    seed: int,
    workers: int,
    overwrite: bool = False,
    cache: ShardCache | None = None,
) -> Index:
    """Write the samples of a set into new shards.

    Args:
        source: Folder or URL of the set.
        folder: Folder of the new shards; new, empty, or left by a killed reshard.
        shard_bytes: Largest size of a new tar; 0 if ``num_shards`` is given.
        num_shards: Number of new tars; 0 if ``shard_bytes`` is given.
        seed: Seed of the order of samples.
        workers: Number of processes; it does not change a byte.
        overwrite: Replace an existing set of shards.
        cache: Where remote shards are kept; None: the default one.

    Raises:
        UserError: The set cannot be read, is damaged, or the folder cannot be written.
    """
    shards = open_shards(source, cache)
    _check_cache(shards, shards.cache)
    settings = (shards.fingerprint, shard_bytes, num_shards, seed)
    finished = FinishedShards(folder, "reshard", digest((), settings))
    check_target(folder, overwrite)
    if not finished.is_unfinished():
        check_no_set(folder, overwrite)
        finished.check_none_finished(overwrite)
    check_apart(folder, [shard.url for shard in shards.shards])
    try:
        with finished.open() as resumes:
            samples = list_samples(shards, workers)
            cuts = cut(samples, shard_bytes, num_shards, seed)
            check_space(folder, sum(sample.num_bytes for sample in samples))
            remove_partials(folder) if resumes else remove_set(folder)
            tasks = [
                WriteTask(folder / f"shard-{number:06d}.tar", part, finished)
                for number, part in enumerate(cuts)
            ]
            results = run_tasks(write_shard, tasks, len(samples), workers, "writing", "samples")
            before = read_index(shards.parts[0].folder)
            index = replace(
                before,
                shards=tuple(result.shard for result in results),
                groups=tuple(group for result in results for group in result.groups),
            )
            write_index(folder, index, [result.records for result in results])
            finished.remove()
    except OSError as error:
        raise UserError(
            f"cannot write shards into {folder}: {error.strerror or error}",
            "check permissions and free space there, then run the same command again to resume",
        ) from None
    return index


def list_samples(shards: ShardSet, workers: int) -> list[MovedSample]:
    """Every sample of a set, with files renamed so that no two samples share a key."""
    groups = shards.groups
    tasks = [
        ListTask(
            shards.cache.path(shard),
            shard,
            np.array(shards.records_of(number)),
            None if groups is None else groups[slice(*shards.starts[number : number + 2])],
        )
        for number, shard in enumerate(shards.shards)
    ]
    listed = run_tasks(list_shard, tasks, len(tasks), workers, "reading", "shards")
    taken: set[str] = set()
    samples = []
    for task, found in zip(tasks, listed, strict=True):
        for key, files in found:
            unique = make_unique(key, "", taken)
            moved = (replace(file, name=f"{unique}{file.name[len(key) :]}") for file in files)
            samples.append(MovedSample(str(task.path), tuple(moved)))
    return samples


def list_shard(task: ListTask) -> list[tuple[str, list[MovedFile]]]:
    """(key, files under their old names) of every sample of one old shard.

    Raises:
        UserError: It does not match its index.
    """
    # By both: a hard link has the offset of the file that it refers to.
    groups = [None] * len(task.records) if task.groups is None else task.groups.tolist()
    known = {
        (int(record["offset"]), int(record["lead"])): (int(record["label"]), group)
        for record, group in zip(task.records, groups, strict=True)
    }
    found = []
    try:
        with task.path.open("rb") as file:
            reader = HashingReader(file)
            for sample in walk_samples(reader, LabelRule("none")):
                if isinstance(sample, Refusal):
                    continue  # not part of a sample
                files = [
                    MovedFile(
                        f.name, f.offset, f.length, *known.get((f.offset, f.lead), (None, None))
                    )
                    for f in sample.files
                ]
                found.append((sample.key, files))
            intact = reader.finish() == task.shard.sha256
    except UnsortedError as error:
        raise UserError(
            f"shard {task.shard.url}: {error}",
            "unpack it and make it again:  tar --sort=name -cf NEW.tar -C FOLDER .  then index it",
        ) from None
    except (tarfile.TarError, OSError):
        intact = False
    if not intact:
        raise UserError(
            f"shard {task.shard.url} is damaged: its bytes do not match its index",
            "ssl-vit shards check SHARDS  says where",
        )
    count_done()
    return found


def cut(
    samples: Sequence[MovedSample], shard_bytes: int, num_shards: int, seed: int
) -> list[tuple[MovedSample, ...]]:
    """The samples of every new shard.

    Args:
        shard_bytes, num_shards: As in :func:`reshard`; one of them is 0.
    """
    row = [samples[place] for place in permutation(len(samples), seed)]
    if num_shards:
        count = min(num_shards, len(row))
        ends = [len(row) * number // count for number in range(count + 1)]
    else:
        ends = even_cuts([sample.num_bytes for sample in row], shard_bytes)
    return [tuple(row[start:end]) for start, end in pairwise(ends)]


def write_shard(task: WriteTask) -> WrittenShard:
    """Write one new tar, unless a killed reshard had finished it."""
    part = task.finished.load(task.target.stem)
    if part and task.target.is_file() and task.target.stat().st_size == part.shard.num_bytes:
        count_done(len(task.samples))
        return part
    rows: list[tuple[int, int, int, int]] = []
    groups: list[int] = []
    with (
        _OldShards() as old,
        replacing(task.target) as partial,
        partial.open("wb", buffering=0) as file,
    ):
        tar = HashedTar(file)
        for sample in task.samples:
            for moved in sample.files:
                start = tar.num_bytes
                offset = tar.add(moved.name, old.read(sample.shard, moved))
                if moved.label is not None:
                    rows.append((offset, moved.length, offset - start, moved.label))
                if moved.group is not None:
                    groups.append(moved.group)
            count_done()
        sha256 = tar.finish()
    records = np.array(rows, dtype=SAMPLE_RECORD)
    shard = describe_shard(task.target.name, tar.num_bytes, sha256, records)
    result = WrittenShard(shard, records, groups=groups)
    task.finished.save(task.target.stem, result)
    return result


class _OldShards:
    """Reads from more tars than a process may have open."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> "_OldShards":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, shard: str, moved: MovedFile) -> bytes:
        try:
            if shard not in self._descriptors:
                if len(self._descriptors) >= _MOST_OPEN:
                    os.close(self._descriptors.pop(next(iter(self._descriptors))))
                self._descriptors[shard] = os.open(shard, os.O_RDONLY)
            data = os.pread(self._descriptors[shard], moved.length, moved.offset)
        except OSError as error:
            raise UserError(
                f"cannot read shard {shard}: {error.strerror or error}",
                "run the same command again",
            ) from None
        if len(data) != moved.length:
            raise UserError(
                f"shard {shard} changed while it was read: it ends inside {moved.name}",
                "keep other programs from writing to it, and run the same command again",
            )
        return data


def _check_cache(shards: ShardSet, cache: ShardCache) -> None:
    remote = sum(shard.num_bytes for shard in shards.shards if not is_local(shard.url))
    if remote > cache.num_bytes:
        raise UserError(
            f"{shards.source} is remote, is read in random order and has {format_bytes(remote)}, "
            f"more than the cache ({format_bytes(cache.num_bytes)})",
            "raise $SSL_VIT_CACHE_BYTES, or copy the shards here with the tools of their store",
        )
