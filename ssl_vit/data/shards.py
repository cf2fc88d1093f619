"""A shard set: WebDataset tars, local or remote, from which any sample is one `pread` away.

Opening one reads its index and checks that its local shards exist; a tar is opened when the first
of its samples is read. No torch here: the plan and the checks open a set before anything slow is
imported.
"""

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import INDEX_FILE, SAMPLES_FILE, Shard, fingerprint, records_digest
from ssl_vit.data.records import SMALL, Records
from ssl_vit.data.urls import is_local
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.files import readable

# webdataset's own expressions.
_KEY_AND_ENDING = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META_FOLDER = re.compile(r"__[^/]*__($|/)")

# Most shards that a process keeps open.
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class Part:
    """Neighboring shards of a set that came from one index."""

    source: str
    """The user's name for it."""
    folder: Path
    """The folder of `samples.npy`."""
    num_records: int
    """Number of records in that file."""
    places: tuple[tuple[int, int], ...]
    """For each shard: its first record in that file, and its number of records."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown, by its index."""
    groups: tuple[int, ...] = ()
    """(num_records,) the group of each record, by its index; empty: not known."""

    @property
    def num_samples(self) -> int:
        """Number of samples in its shards."""
        return sum(count for _, count in self.places)


class ShardSet:
    """Shards, opened through their index.

    Sample numbers run from 0 to ``num_samples`` − 1 in shard order and never change.

    Args:
        parts: Each has the records of some shards, in the order of ``shards``.
        shards: Shards whose ``url`` is a path or a URL that can be opened.
        classes: Names of the classes, by number.
        cache: Where remote shards are kept.
        verifies_records: Compare records with the index before they are used.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        shards: Sequence[Shard],
        classes: Sequence[str],
        cache: ShardCache,
        verifies_records: bool = True,
    ) -> None:
        self.parts, self.shards, self.classes = tuple(parts), tuple(shards), tuple(classes)
        self.cache, self.verifies_records = cache, verifies_records
        # (S + 1,) the sample number at which each shard starts; the last entry is the total.
        counts = [shard.num_samples for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        # (S,) for each shard: its part, and its first record there.
        self._part_of = np.repeat(np.arange(len(parts)), [len(part.places) for part in parts])
        self._first_record = np.array([first for part in parts for first, _ in part.places])
        # (S,) for each shard: 1 if this process has compared its records.
        self._compared = bytearray(len(self.shards))
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    @property
    def source(self) -> str:
        """The user's name for the set."""
        return ",".join(part.source for part in self.parts)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.starts[-1])

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when any byte of any shard does."""
        return fingerprint(self.shards)

    @cached_property
    def _records(self) -> list[Records]:
        """The records of each part."""
        return [
            Records(
                part.folder / SAMPLES_FILE,
                part.num_records,
                part.folder.is_relative_to(self.cache.indexes),
            )
            for part in self.parts
        ]

    @property
    def values(self) -> ValueRange | None:
        """How values of more than 8 bits are shown, by the index; None if no image has them.

        Raises:
            UserError: Its indexes have different ranges.
        """
        found = {part.values: part.source for part in self.parts if part.values}
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            low, high = min(first.low, second.low), max(first.high, second.high)
            if (first.low, first.high) == (second.low, second.high):
                absent = first.no_data if first.no_data is not None else second.no_data
                raise UserError(
                    f"{one} and {other} have different no-data values: {first} and {second}",
                    f"make both indexes with --no-data {absent:g}; in training, "
                    f"data.value_range=[{low:g},{high:g}] data.no_data={absent:g}",
                )
            raise UserError(
                f"{one} and {other} have different value ranges, {first} and {second}",
                f"make both indexes with --value-range {low:g} {high:g}; in training, "
                f"data.value_range=[{low:g},{high:g}]",
            )
        return next(iter(found), None)

    @property
    def groups(self) -> np.ndarray | None:
        """(num_samples,) int64 the group of each sample, whose images belong together (a patient, a
        slide); None if no index has groups. Samples of an index without groups are alone, and
        groups of two indexes are never the same.
        """
        if not any(part.groups for part in self.parts):
            return None
        found, used = [], 0
        for part in self.parts:
            numbers = np.arange(part.num_records)
            if part.groups:
                numbers = np.array(part.groups, dtype=np.int64)
            found += [used + numbers[first : first + count] for first, count in part.places]
            used += int(numbers.max()) + 1
        return np.concatenate(found)

    def check_records(self) -> None:
        """Open the records, and compare those of a small set with the index, so that no data worker
        is the first to find them damaged.

        Raises:
            UserError: A `samples.npy` cannot be read, or does not match its index.
        """
        _ = self._records
        if self.num_samples <= SMALL:
            for shard in range(len(self.shards)):
                self.records_of(shard)

    def records_of(self, shard: int) -> np.ndarray:
        """(num_samples,) of ``SAMPLE_RECORD``: the records of one shard.

        Raises:
            UserError: They do not match the index; names file and shard.
        """
        records, entry = self._opened_records(shard), self.shards[shard]
        found = records.some(int(self._first_record[shard]), entry.num_samples)
        if self.verifies_records and not self._compared[shard]:
            if records_digest(found) != entry.records_sha256:
                raise records.unusable(
                    f"{records.path} does not match its {INDEX_FILE}: the records (offsets, "
                    f"labels) of {entry.name} have a different sha256"
                )
            self._compared[shard] = 1
        return found

    def _opened_records(self, shard: int) -> Records:
        place = int(self._part_of[shard])
        records = self._records[place]
        if records.were_written_to():
            for number in np.flatnonzero(self._part_of == place):
                self._compared[number] = 0
        return records

    def record(self, number: int) -> np.void:
        """The ``SAMPLE_RECORD`` of one sample."""
        return self._record(self.shard_of(number), number)

    @property
    def labels(self) -> np.ndarray:
        """(num_samples,) int32 class numbers, −1 where a sample has none."""
        if self.num_samples > SMALL and not all(self._compared):
            self.cache.report(f"reading the labels of {self.num_samples:,} images …")
        # Copies, so that the rest of each record can be freed.
        columns = [self.records_of(shard)["label"].copy() for shard in range(len(self.shards))]
        return np.concatenate(columns)

    def shard_of(self, number: int) -> int:
        """Number of the shard that holds this sample."""
        return int(self.starts.searchsorted(number, side="right")) - 1

    def location_of(self, number: int) -> str:
        """Path or URL of the shard that holds this sample."""
        return self.shards[self.shard_of(number)].url

    def read(self, number: int) -> bytes:
        """The image file's bytes of one sample, by a single `pread`.

        Raises:
            UserError: The shard cannot be fetched or read; names it.
        """
        shard = self.shard_of(number)
        offset, length, _, _ = self._record(shard, number).item()
        try:
            data = os.pread(self._descriptor(shard), length, offset)
        except OSError as error:
            raise _unreadable(self.shards[shard], error.strerror or str(error)) from None
        if len(data) != length:
            raise _unreadable(self.shards[shard], f"it ends inside sample {number}")
        return data

    def key(self, number: int) -> str:
        """The sample's WebDataset key (its path in the image folder without the ending), read from
        the tar.

        Raises:
            UserError: The shard cannot be fetched or read; names it.
        """
        shard, record = self.shards[self.shard_of(number)], self.record(number)
        # Signed: the header of a hard link comes after the bytes that it refers to.
        header = int(record["offset"]) - int(record["lead"].view(np.int32))
        try:
            with self.cache.path(shard).open("rb") as file:
                file.seek(header)
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    member = tar.next()
        except (OSError, tarfile.TarError) as error:
            raise _unreadable(shard, str(error)) from None
        return split_key(readable(member.name))[0] if member else f"number {number}"

    def _record(self, shard: int, number: int) -> np.void:
        records = self._opened_records(shard)
        if self.verifies_records and not self._compared[shard]:
            self.records_of(shard)
        return records.one(int(self._first_record[shard]) + number - int(self.starts[shard]))

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():
            # A forked data worker opens its own; those it inherited stay open in the parent.
            self._descriptors, self._owner = {}, os.getpid()
        if shard not in self._descriptors:
            self._close_what_is_gone()
            self._descriptors[shard] = self._open(self.shards[shard])
        return self._descriptors[shard]

    def _open(self, shard: Shard) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            return os.open(self.cache.path(shard), flags)
        except FileNotFoundError:
            # Evicted from the cache before it was opened: once more. A local shard stays missing.
            return os.open(self.cache.path(shard), flags)

    def _close_what_is_gone(self) -> None:
        """Close shards that were evicted from the cache, whose space would stay in use, and the
        oldest ones if too many are open. A deleted local shard can be read while it stays open.
        """
        for shard, descriptor in list(self._descriptors.items()):
            evicted = os.fstat(descriptor).st_nlink == 0 and not is_local(self.shards[shard].url)
            if evicted or len(self._descriptors) >= _OPEN_SHARDS:
                os.close(self._descriptors.pop(shard))

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_records"}
        fresh = {"_descriptors": {}, "_owner": -1, "_compared": bytearray(len(self.shards))}
        return state | fresh


def split_key(member_name: str) -> tuple[str, str]:
    """(key, ending) of a tar member by webdataset's rule: the ending begins at the base name's
    first dot. A name without a dot is a key without an ending.
    """
    match = _KEY_AND_ENDING.match(member_name)
    return (match[1], match[2].lower()) if match else (member_name, "")


def is_in_sample(member_name: str) -> bool:
    """Whether webdataset treats a tar member as part of a sample: hidden files, names without a dot
    and names like `__this__` are not.

    Source: `base_plus_ext` and `tar_file_iterator` in webdataset's `tariterators.py`.
    """
    # Taken literally, the expression makes `a/._b.jpg` the sample `a/` with the ending `_b.jpg`.
    if member_name.rpartition("/")[2].startswith(".") or "__MACOSX" in member_name.split("/"):
        return False
    if _META_FOLDER.match(member_name) or not _KEY_AND_ENDING.match(member_name):
        return False
    is_meta = member_name.startswith("__") and member_name.endswith("__")
    return "/" in member_name or not is_meta


def _unreadable(shard: Shard, why: str) -> UserError:
    return UserError(
        f"cannot read shard {shard.url}: {why}",
        "restore it and run the same command again; `ssl-vit shards check SHARDS` lists what is "
        "wrong",
    )
