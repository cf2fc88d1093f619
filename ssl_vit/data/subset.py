"""Some samples of a shard set, as a shard set of their own. No torch here."""

import hashlib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ssl_vit.data.shards import ShardSet


class SubsetOfShards(ShardSet):
    """The kept samples of a set, renumbered in their order; it has all shards of that set.

    Args:
        whole: The set.
        kept: (n,) ascending sample numbers.
    """

    def __init__(self, whole: ShardSet, kept: np.ndarray) -> None:
        self.whole, self.kept = whole, kept
        self.shards, self.classes, self.cache = whole.shards, whole.classes, whole.cache
        self.verifies_records = whole.verifies_records
        self.starts = kept.searchsorted(whole.starts).astype(np.int64)
        counts = iter([end - start for start, end in pairwise(self.starts.tolist())])
        self.parts = tuple(
            replace(part, places=tuple((first, next(counts)) for first, _ in part.places))
            for part in whole.parts
        )

    def check_records(self) -> None:
        """See :class:`ShardSet`."""
        self.whole.check_records()

    def records_of(self, shard: int) -> np.ndarray:
        """See :class:`ShardSet`; of the kept samples."""
        mine = self.kept[self.starts[shard] : self.starts[shard + 1]]
        return self.whole.records_of(shard)[mine - self.whole.starts[shard]]

    def record(self, number: int) -> np.void:
        """See :class:`ShardSet`."""
        return self.whole.record(int(self.kept[number]))

    @property
    def digest_of_kept(self) -> str:
        """16 hex digits that change when other samples are kept."""
        return hashlib.sha256(self.kept.astype("<i8").tobytes()).hexdigest()[:16]

    @property
    def labels(self) -> np.ndarray:
        """See :class:`ShardSet`."""
        return self.whole.labels[self.kept]

    @property
    def groups(self) -> np.ndarray | None:
        """See :class:`ShardSet`."""
        groups = self.whole.groups
        return None if groups is None else groups[self.kept]

    def read(self, number: int) -> bytes:
        """See :class:`ShardSet`."""
        return self.whole.read(int(self.kept[number]))

    def key(self, number: int) -> str:
        """See :class:`ShardSet`."""
        return self.whole.key(int(self.kept[number]))

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)
