"""Whether a local shard matches its index: hashed before use, then watched by `stat`.

A look is one `stat`. Only a shard whose inode, size or times have changed since it was hashed is
hashed again. No torch here.
"""

import hashlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ssl_vit.data.index_file import Shard
from ssl_vit.data.urls import local_path
from ssl_vit.errors import UserError

LOOK_SECONDS = 10.0
"""Seconds between two looks at the same shard: a process of a large run reads hundreds at a time,
from a file system that others use too."""
# A shard that always looks changed (some network file systems invent inode numbers) is hashed again
# only after this many times the duration of its last hash.
_REST = 20.0


class Stamp(NamedTuple):
    """The state of a file, which differs after it was replaced or written to."""

    inode: int
    num_bytes: int
    modified: int
    """Time of the last write in nanoseconds; a writer can set it to anything."""
    changed: int
    """Time of the last change in nanoseconds; set by the system alone."""


@dataclass(frozen=True)
class Verified:
    """A local shard that matched its index."""

    stamp: Stamp
    """Its state before it was read."""
    rests_until: float
    """When it is looked at again at the earliest, on the monotonic clock."""


def verify(shard: Shard, was_whole: bool = False) -> Verified:
    """Compare a local shard with its index.

    Args:
        was_whole: Whether it had the right bytes earlier in this run.

    Raises:
        UserError: It cannot be read, or does not match; names it.
    """
    began = time.monotonic()
    try:
        with local_path(shard.url).open("rb", buffering=0) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read shard {shard.url}: {error.strerror}",
            "restore it and run the same command again, or pack again",
        ) from None
    if found == shard.sha256:
        now = time.monotonic()
        return Verified(stamp, now + _REST * (now - began) if was_whole else now)
    if was_whole:
        raise UserError(
            f"shard {shard.url} is damaged: it was changed during this run and no longer matches "
            "its index (sha256 differs)",
            "restore it, keep other programs from writing to it, and run the same command again to "
            "continue from the last checkpoint",
        )
    raise UserError(
        f"shard {shard.url} is damaged: it does not match its index (sha256 differs)",
        "ssl-vit shards check SHARDS  says where; restore it or pack again "
        "(engine.verify_shards=false trains on it as it is)",
    )


class Watch:
    """The local shards that were verified, and which of them to look at."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._verified: dict[int, Verified] = {}
        self._watched: set[int] = set()
        self._next = 0.0

    def add(self, number: int, verified: Verified) -> None:
        """Remember that a shard was verified."""
        self._verified[number] = verified

    def knows(self, number: int) -> bool:
        """Whether a shard was verified."""
        return number in self._verified

    def use(self, numbers: Iterable[int]) -> None:
        """Watch shards that are in use now, verified already or not, for one look at least."""
        self._watched.update(numbers)

    def look(self, still: Iterable[int]) -> list[int]:
        """Shards that may have changed; empty if the last look was a moment ago.

        Args:
            still: Shards in use from now on.
        """
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + LOOK_SECONDS
        resting = [number for number in self._watched if self._rests(number, now)]
        suspects = self._look(now)
        self._watched = {*still, *resting}
        return suspects

    def look_last(self) -> list[int]:
        """Shards that may have changed, however recent their last look."""
        return self._look(math.inf)

    def _rests(self, number: int, now: float) -> bool:
        verified = self._verified.get(number)
        return verified is None or now < verified.rests_until

    def _look(self, now: float) -> list[int]:
        suspects = []
        for number in self._watched:
            if number not in self._verified or self._rests(number, now):
                continue
            try:
                found = _stamp(local_path(self._shards[number].url).stat())
            except OSError:
                # Deleted, or its file system is away: processes that have it open read what was
                # verified, and the next one to open it reports the error.
                continue
            if found != self._verified[number].stamp:
                suspects.append(number)
        return suspects


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
