"""A shard set: WebDataset tars, local or remote, from which any sample is one `pread` away.

Opening one reads its index and looks for its local shards; no tar is opened before a sample of it
is asked for. No torch here: the plan and the checks open a set before anything slow is imported.
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
from ssl_vit.data.index_file import SAMPLE_RECORD, SAMPLES_FILE, Shard, fingerprint
from ssl_vit.errors import UserError
from ssl_vit.files import readable

# webdataset's own expressions.
_KEY_AND_ENDING = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META_FOLDER = re.compile(r"__[^/]*__($|/)")

# A process keeps so many shards open at most.
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class Part:
    """Neighbouring shards of a set that came from one index."""

    source: str
    """What the user called it."""
    folder: Path
    """Holds `samples.npy`."""
    num_records: int
    """In that file."""
    places: tuple[tuple[int, int], ...]
    """For each shard: its first record in that file, and how many it has."""

    @property
    def num_samples(self) -> int:
        """Samples of its shards."""
        return sum(count for _, count in self.places)


class ShardSet:
    """Shards, opened through their index.

    Sample numbers run from 0 to ``num_samples`` − 1 in shard order and never change.

    Args:
        parts: Each holds the records of some shards, in the order of ``shards``.
        shards: Their ``url`` is a path or a URL that can be opened.
        classes: Names of the classes, by number.
        cache: Where remote shards are kept.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        shards: Sequence[Shard],
        classes: Sequence[str],
        cache: ShardCache,
    ) -> None:
        self.parts, self.shards, self.classes = tuple(parts), tuple(shards), tuple(classes)
        self.cache = cache
        # (S + 1,) sample number at which each shard starts; the last entry is the total.
        counts = [shard.num_samples for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        # (S,) for each shard: which part it is in, and its first record there.
        self._part_of = np.repeat(np.arange(len(parts)), [len(part.places) for part in parts])
        self._first_record = np.array([first for part in parts for first, _ in part.places])
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    @property
    def source(self) -> str:
        """What the user called it."""
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
    def _records(self) -> list[np.ndarray]:
        """For each part (num_records,) of ``SAMPLE_RECORD``, memory-mapped."""
        return [_map_records(part) for part in self.parts]

    def check_records(self) -> None:
        """Look at the records now, so that no data worker is the first to find them damaged.

        Raises:
            UserError: A `samples.npy` cannot be read, or does not fit its index.
        """
        _ = self._records

    def records_of(self, shard: int) -> np.ndarray:
        """(num_samples,) of ``SAMPLE_RECORD``: the records of one shard."""
        first = int(self._first_record[shard])
        records = self._records[int(self._part_of[shard])]
        return records[first : first + self.shards[shard].num_samples]

    def record(self, number: int) -> np.void:
        """The ``SAMPLE_RECORD`` of one sample."""
        return self._record(self.shard_of(number), number)

    @property
    def labels(self) -> np.ndarray:
        """(num_samples,) int32 class numbers, −1 where a sample has none."""
        columns = [self.records_of(shard)["label"] for shard in range(len(self.shards))]
        return np.concatenate(columns)

    def shard_of(self, number: int) -> int:
        """Which shard holds this sample."""
        return int(self.starts.searchsorted(number, side="right")) - 1

    def location_of(self, number: int) -> str:
        """Path or URL of the shard that holds this sample."""
        return self.shards[self.shard_of(number)].url

    def read(self, number: int) -> bytes:
        """The image file's bytes of one sample, by a single `pread`.

        Raises:
            UserError: The shard cannot be had or read; names it.
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
            UserError: The shard cannot be had or read; names it.
        """
        shard, record = self.shards[self.shard_of(number)], self.record(number)
        # Signed: the header of a hard link comes after the bytes that it names.
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
        place = int(self._first_record[shard]) + number - int(self.starts[shard])
        return self._records[int(self._part_of[shard])][place]

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():
            # A forked data worker has its own numbers; what it inherited stays open in the parent.
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
            # Evicted from the cache between the two: once more. A local one stays missing.
            return os.open(self.cache.path(shard), flags)

    def _close_what_is_gone(self) -> None:
        """Close shards that were evicted from the cache, whose room would stay taken, and the
        oldest of too many.
        """
        for shard, descriptor in list(self._descriptors.items()):
            if os.fstat(descriptor).st_nlink == 0 or len(self._descriptors) >= _OPEN_SHARDS:
                os.close(self._descriptors.pop(shard))

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_records"}
        return state | {"_descriptors": {}, "_owner": -1}


def split_key(member_name: str) -> tuple[str, str]:
    """(key, ending) of a tar member by webdataset's rule: the ending begins at the base name's
    first dot. A name without a dot is a key without an ending.
    """
    match = _KEY_AND_ENDING.match(member_name)
    return (match[1], match[2].lower()) if match else (member_name, "")


def is_in_sample(member_name: str) -> bool:
    """Whether webdataset takes a tar member for a part of a sample: hidden files, names without a
    dot and what is named like `__this__` are none.

    Source: `base_plus_ext` and `tar_file_iterator` in webdataset's `tariterators.py`.
    """
    # By the letter of the expression `a/._b.jpg` is the sample `a/` with the ending `_b.jpg`.
    if member_name.rpartition("/")[2].startswith(".") or "__MACOSX" in member_name.split("/"):
        return False
    if _META_FOLDER.match(member_name) or not _KEY_AND_ENDING.match(member_name):
        return False
    is_meta = member_name.startswith("__") and member_name.endswith("__")
    return "/" in member_name or not is_meta


def _map_records(part: Part) -> np.ndarray:
    path = part.folder / SAMPLES_FILE
    again = f"make the index of {part.source} again"
    try:
        records = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", again) from None
    if records.dtype != SAMPLE_RECORD or len(records) != part.num_records:
        raise UserError(f"{path} does not fit its index", again)
    return records


def _unreadable(shard: Shard, why: str) -> UserError:
    return UserError(
        f"cannot read shard {shard.url}: {why}",
        "ssl-vit shards check SHARDS  says what is wrong where",
    )
