"""Reading `samples.npy`: from memory if it is small, otherwise by one `pread` per record.

Never memory-mapped: if a mapped file is truncated while it is in use, the kernel kills the process
that touches the missing part (SIGBUS), and no message names the file. No torch here.
"""

import os
import time
from pathlib import Path
from typing import IO

import numpy as np

from ssl_vit.data.index_file import INDEX_FILE, SAMPLE_RECORD, SAMPLES_FILE
from ssl_vit.errors import UserError
from ssl_vit.foreign import first_line

SMALL = 2_000_000
"""Largest number of records (40 MB) that are kept in memory and compared with the index when a set
is opened; in a larger set, a shard's records are compared when the first of them is used."""
_LOOK_SECONDS = 10.0  # between two checks whether the file of a large set was written to


class Records:
    """The records of one index.

    Args:
        path: The `samples.npy`.
        num_records: Their number by its `index.json`.
        is_copy: Whether the folder is the cache's copy of a remote index.

    Raises:
        UserError: The file cannot be read, or does not match its index.
    """

    def __init__(self, path: Path, num_records: int, is_copy: bool = False) -> None:
        self.path, self.is_copy = path, is_copy
        try:
            self._file = self.path.open("rb", buffering=0)
            found = _read_header(self._file)
        except Exception as error:  # numpy's parser of damaged headers raises many kinds
            raise self.unusable(f"cannot read {self.path}: {first_line(error)}") from None
        self._begin = self._file.tell()
        size = os.fstat(self._file.fileno()).st_size - self._begin
        if found != (num_records,) or size != num_records * SAMPLE_RECORD.itemsize:
            raise self.unusable(f"{self.path} does not match its index")
        self._stamp, self._looked = self._state(), time.monotonic()
        self._memory: np.ndarray | None = None
        if num_records <= SMALL:
            self._memory = self._read(0, num_records)
            self._file.close()

    def one(self, place: int) -> np.void:
        """The ``SAMPLE_RECORD`` at a place."""
        return self.some(place, 1)[0]

    def some(self, first: int, count: int) -> np.ndarray:
        """(count,) of ``SAMPLE_RECORD``.

        Raises:
            UserError: They are no longer there.
        """
        if self._memory is not None:
            return self._memory[first : first + count]
        return self._read(first, count)

    def were_written_to(self) -> bool:
        """Whether the open file has changed since it was opened or last found changed."""
        if self._memory is not None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked, before = time.monotonic(), self._stamp
        self._stamp = self._state()
        return self._stamp != before

    def unusable(self, problem: str) -> UserError:
        """The error for records that cannot be used."""
        if self.is_copy:
            return UserError(
                problem,
                f"remove {self.path.parent}, and run the same command again to fetch that index",
            )
        return UserError(
            problem,
            f"restore {SAMPLES_FILE} and {INDEX_FILE} from the same copy of the set, or make both "
            "again with `ssl-vit shards index` or `ssl-vit shards pack`",
        )

    def _read(self, first: int, count: int) -> np.ndarray:
        rest = count * SAMPLE_RECORD.itemsize
        place = self._begin + first * SAMPLE_RECORD.itemsize
        parts: list[bytes] = []
        while rest:
            try:
                parts.append(os.pread(self._file.fileno(), rest, place))
            except OSError as error:
                raise self.unusable(f"cannot read {self.path}: {error.strerror}") from None
            if not parts[-1]:
                raise self.unusable(f"{self.path} was truncated while it was in use")
            rest, place = rest - len(parts[-1]), place + len(parts[-1])
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=SAMPLE_RECORD)

    def _state(self) -> tuple[int, int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_header(file: IO[bytes]) -> tuple[int, ...]:
    """The shape in the file's header; leaves the file at its first record."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its npy format is not version 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    # An array of another kind has no shape that could match.
    return () if dtype != SAMPLE_RECORD or is_fortran else shape
