"""The samples of step t: a pure function of (seed, t), which is what makes resuming exact.

An epoch is one virtual row of all samples: the shards in an order of this epoch, rotated by an
offset of this epoch. The row is divided into `lanes` of equal length (fewer than `lanes` samples at
its end are left out), and every lane is shuffled within blocks of neighbors. Step t takes the next
``global_batch / lanes`` samples of every lane; a rank serves consecutive lanes. Nothing here
depends on the number of processes, workers or micro-batches, and nothing has to be replayed:
starting at step ten million costs as much as starting at step ten.

All randomness is integer arithmetic of our own (splitmix64), because numpy does not promise that
its generators give the same permutation in its next version.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ssl_vit.errors import UserError

# Distinct first words, so that no two uses of randomness ever share a stream.
_SHARD_ORDER, _EPOCH_OFFSET, _BLOCK_ORDER, _SAMPLE = 1, 2, 3, 4
_64_BITS = 2**64 - 1


def too_few_samples_error(
    num_samples: int, lanes: int, global_batch_size: int, world_size: int = 1
) -> UserError:
    """The error for a set with fewer samples than lanes; suggests values that train."""
    fitting = [
        count
        for count in range(1, num_samples + 1)
        if global_batch_size % count == 0 and count % world_size == 0
    ]
    if fitting:
        remedy = f"add  data.lanes={fitting[-1]}"
    else:
        remedy = f"add images, or use 1 process (of {world_size}) with  data.lanes=1"
    return UserError(f"{num_samples} samples are fewer than data.lanes={lanes}", remedy)


class SampleRef(NamedTuple):
    """One sample of one epoch: what a data worker needs to make it."""

    number: int
    """Sample number in the shard set."""
    epoch: int
    """Counts from 0."""


class Order(Protocol):
    """The samples of every step, and the shards that hold them. Pure functions of the step."""

    def update(self, step: int, lanes: range) -> list[SampleRef]:
        """The samples of these lanes in a step (from 0), lane by lane."""
        ...

    def shards_at(self, step: int, lanes: range) -> list[int]:
        """The shards from which these lanes may take samples in a step, each once."""
        ...

    def next_change(self, step: int, lanes: range) -> int:
        """The first step after ``step`` for which :meth:`shards_at` may name further shards."""
        ...


class SampleOrder:
    """The order of one shard set under one seed.

    Args:
        shard_sizes: Number of samples in every shard, in index order.
        lanes: L, the number of independent stretches of an epoch.
        global_batch_size: Samples per step; a multiple of ``lanes``.
        shuffle_block: Samples of a lane that are shuffled together.
        seed: The run's seed.

    Raises:
        UserError: Fewer samples than lanes, or a batch that the lanes do not divide.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        lanes: int,
        global_batch_size: int,
        shuffle_block: int,
        seed: int,
    ) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        self.lanes, self.seed, self.shuffle_block = lanes, seed, shuffle_block
        if global_batch_size % lanes:
            raise UserError(
                f"data.lanes={lanes} does not divide data.global_batch_size={global_batch_size}",
                "choose a number of lanes that does",
            )
        if self.num_samples < lanes:
            raise too_few_samples_error(self.num_samples, lanes, global_batch_size)
        self.per_lane = global_batch_size // lanes
        # Samples of one lane in one epoch; the remainder of the division (< lanes) is left out.
        self.lane_length = self.num_samples // lanes
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray, int]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def update(self, step: int, lanes: range) -> list[SampleRef]:
        """The samples of these lanes in a step, lane by lane.

        Args:
            step: Counts from 0.
            lanes: The rank's lanes, see :func:`lanes_of_rank`.
        """
        places = range(step * self.per_lane, (step + 1) * self.per_lane)
        return [self.sample(lane, place) for lane in lanes for place in places]

    def shards_at(self, step: int, lanes: range) -> list[int]:
        """The shards of the blocks that these lanes are in at a step, each once."""
        first, end = step * self.per_lane, (step + 1) * self.per_lane
        return merge(self.shards_between(lane, first, end) for lane in lanes)

    def next_change(self, step: int, lanes: range) -> int:
        """The first step after ``step`` in which a lane enters another block."""
        return self.next_block((step + 1) * self.per_lane - 1) // self.per_lane

    def sample(self, lane: int, place: int) -> SampleRef:
        """The sample at a place of a lane, counted from 0 over all epochs."""
        epoch, position = divmod(place, self.lane_length)
        block, within = divmod(position, self.shuffle_block)
        row = lane * self.lane_length + block * self.shuffle_block
        row += int(self._block(epoch, lane, block)[within])
        order, row_starts, offset = self._epoch(epoch)
        row = (row + offset) % self.num_samples
        shard = int(row_starts.searchsorted(row, side="right")) - 1
        return SampleRef(int(self._starts[order[shard]] + row - row_starts[shard]), epoch)

    def shards_between(self, lane: int, first: int, end: int) -> list[int]:
        """The shards of all blocks of a lane from place ``first`` up to ``end``, each once."""
        found: list[int] = []
        while first < end:
            epoch, position = divmod(first, self.lane_length)
            block = position // self.shuffle_block
            found += self._shards_of_block(epoch, lane, block)
            first = self.next_block(first)
        return list(dict.fromkeys(found))

    def next_block(self, place: int) -> int:
        """The first place of the block after the one that ``place`` is in."""
        epoch, position = divmod(place, self.lane_length)
        end = (position // self.shuffle_block + 1) * self.shuffle_block
        return epoch * self.lane_length + min(end, self.lane_length)

    def _shards_of_block(self, epoch: int, lane: int, block: int) -> list[int]:
        order, row_starts, offset = self._epoch(epoch)
        size = min(self.shuffle_block, self.lane_length - block * self.shuffle_block)
        row = lane * self.lane_length + block * self.shuffle_block + offset
        first, last = row % self.num_samples, (row + size - 1) % self.num_samples
        begin = int(row_starts.searchsorted(first, side="right")) - 1
        end = int(row_starts.searchsorted(last, side="right"))
        if first <= last:
            return order[begin:end].tolist()
        return [*order[begin:].tolist(), *order[:end].tolist()]  # wraps around the row's end

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Shard order of an epoch, where each shard starts in its row, and the row's rotation."""
        if epoch not in self._epochs:
            order = permutation(len(self.shard_sizes), self.seed, _SHARD_ORDER, epoch)
            row_starts = np.concatenate([[0], np.cumsum(self.shard_sizes[order])])
            offset = int(hash_words(self.seed, _EPOCH_OFFSET, epoch)) % self.num_samples
            self._epochs[epoch] = (order, row_starts, offset)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _block(self, epoch: int, lane: int, block: int) -> np.ndarray:
        key = (epoch, lane, block)
        if key not in self._blocks:
            size = min(self.shuffle_block, self.lane_length - block * self.shuffle_block)
            # 32 bits: a rank holds one block of each of its lanes.
            self._blocks[key] = permutation(size, self.seed, _BLOCK_ORDER, *key).astype(np.uint32)
            while len(self._blocks) > 2 * self.lanes:
                self._blocks.popitem(last=False)
        return self._blocks[key]


def merge(lists: Iterable[list[int]]) -> list[int]:
    """All numbers of several lists, each once, in the order of their first appearance."""
    return list(dict.fromkeys(number for numbers in lists for number in numbers))


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> range:
    """The lanes a rank serves.

    Raises:
        UserError: The number of processes does not divide the lanes; lists the numbers that do.
    """
    if lanes % world_size:
        fits = [count for count in range(1, lanes + 1) if lanes % count == 0]
        raise UserError(
            f"{world_size} processes do not divide data.lanes={lanes}",
            f"run on {', '.join(map(str, fits))} processes, "
            f"or set data.lanes to a multiple of {world_size}",
        )
    share = lanes // world_size
    return range(rank * share, (rank + 1) * share)


class SampleRandomness:
    """The randomness of every sample: crops, colors, masks. The same on every machine.

    Philox is counter-based: no two keys ever overlap. Use only its ``random()``, whose bits are
    fixed by the algorithm.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state

    def of(self, ref: SampleRef) -> np.random.Generator:
        """The generator of one sample in one epoch, at its start; valid until the next call."""
        # Setting the state of one generator takes a fifth of the time of making another.
        key = [hash_words(self.seed, _SAMPLE, ref.epoch), np.uint64(ref.number)]
        self._state["state"]["key"] = np.array(key, dtype=np.uint64)
        self._philox.state = self._state
        return self._generator


def permutation(size: int, *words: int) -> np.ndarray:
    """(size,) int64, a permutation fixed by the words: the order of `size` hashed numbers."""
    return np.argsort(
        splitmix64(np.arange(size, dtype=np.uint64), hash_words(*words)), kind="stable"
    )


def hash_words(*words: int) -> np.uint64:
    """One 64-bit word from several, by :func:`splitmix64`."""
    # Plain integers: ten times faster than numpy for single words, and this runs for every sample.
    state = 0
    for word in words:
        mixed = ((word + 1) * 0x9E3779B97F4A7C15 + state) & _64_BITS
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state = mixed ^ (mixed >> 31)
    return np.uint64(state)


def splitmix64(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Scramble 64-bit words (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators").
    """
    with np.errstate(over="ignore"):
        mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
