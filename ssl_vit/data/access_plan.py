"""Which shards are read at which point of a run: the plan that the prefetcher works through.

No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_vit.data.index_file import Shard
from ssl_vit.data.order import Order
from ssl_vit.data.urls import is_local
from ssl_vit.errors import UserError
from ssl_vit.units import format_bytes


class AccessPlan(Protocol):
    """Which shards are read at which position of a run. Must pickle."""

    @property
    def end(self) -> int:
        """The position at which nothing more is read."""
        ...

    def shards_at(self, position: int) -> list[int]:
        """Shards in use at this position, each once."""
        ...

    def next_change(self, position: int) -> int:
        """The first later position that may use further shards."""
        ...


@dataclass(frozen=True)
class TrainingAccess:
    """Shards that one rank reads in training; a position is a step."""

    order: Order
    lanes: range
    end: int

    def shards_at(self, position: int) -> list[int]:
        """See :class:`AccessPlan`."""
        return self.order.shards_at(position, self.lanes)

    def next_change(self, position: int) -> int:
        """See :class:`AccessPlan`."""
        return self.order.next_change(position, self.lanes)


class SequentialAccess:
    """Shards read in one pass over some samples in their order; a position counts samples.

    Args:
        starts: ``ShardSet.starts``.
        numbers: Sample numbers, ascending.
    """

    def __init__(self, starts: np.ndarray, numbers: np.ndarray) -> None:
        self.end = len(numbers)
        shards = starts.searchsorted(numbers, side="right") - 1
        self._shards, self._firsts = np.unique(shards, return_index=True)

    def shards_at(self, position: int) -> list[int]:
        """See :class:`AccessPlan`."""
        return [int(self._shards[self._place(position)])]

    def next_change(self, position: int) -> int:
        """See :class:`AccessPlan`."""
        place = self._place(position) + 1
        return int(self._firsts[place]) if place < len(self._firsts) else self.end

    def _place(self, position: int) -> int:
        return int(self._firsts.searchsorted(position, side="right")) - 1


def check_room(shards: Sequence[Shard], in_use: Sequence[int], num_bytes: int) -> None:
    """Refuse a cache that cannot hold the remote shards that are read at the same time.

    Args:
        shards: All shards of the set.
        in_use: Numbers of those that this machine reads at the same time.
        num_bytes: Size of the cache.

    Raises:
        UserError: It would fetch the same shards over and over.
    """
    needed = sum(shards[n].num_bytes for n in in_use if not is_local(shards[n].url))
    if needed > num_bytes:
        raise UserError(
            f"this machine reads {len(in_use):,} shards at the same time, {format_bytes(needed)} "
            f"in all: more than engine.cache_bytes={format_bytes(num_bytes)}",
            "raise engine.cache_bytes, or use fewer data.lanes, a smaller data.shuffle_block or "
            "(`ssl-vit shards reshard`) smaller shards",
        )
