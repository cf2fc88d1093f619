"""Several shard sets in fixed proportions: still a pure function of (seed, step).

Every lane has a row of slots, `global_batch / lanes` per step, and every slot belongs to one set:
the sets are spread as evenly as whole numbers allow, and closed integer arithmetic finds the set of
any slot without counting through those before it. A slot's sample is the next one of that lane in
that set's own order, so each set has its own epochs and uses a sample at most once per epoch.
"""

from bisect import bisect_right
from collections.abc import Sequence

from ssl_vit.data.config import DataConfig
from ssl_vit.data.order import Order, SampleOrder, SampleRef, hash_words, merge

# Weights are kept as shares of 2³²: their products with a slot's number are exact in integers.
_BITS = 32
# First words of randomness, see `order.py`.
_PHASE, _SET = 5, 6


def build_order(shard_sizes: Sequence[Sequence[int]], data: DataConfig, seed: int) -> Order:
    """The order of a run.

    Args:
        shard_sizes: For each set, the number of samples in each of its shards.
        data: Lanes, batch, blocks and weights.
        seed: The run's seed.

    Raises:
        UserError: A set has fewer samples than there are lanes.
    """
    if not data.weights:
        # One row of all shards: with several sets, too, every image is used once per epoch.
        shard_sizes = [[size for sizes in shard_sizes for size in sizes]]
    orders = [
        SampleOrder(
            sizes,
            data.lanes,
            data.global_batch_size,
            data.shuffle_block,
            int(hash_words(seed, _SET, number)) if number else seed,
        )
        for number, sizes in enumerate(shard_sizes)
    ]
    return MixedOrder(orders, data.weights, seed) if len(orders) > 1 else orders[0]


class MixedOrder:
    """The order of several shard sets.

    Args:
        orders: The orders of the sets, with the same lanes and batch.
        weights: Relative share of each set in every step.
        seed: The run's seed.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float], seed: int) -> None:
        self.orders, self.seed = tuple(orders), seed
        self.per_lane = self.orders[0].per_lane
        sizes = [len(order.shard_sizes) for order in self.orders]
        self._first_shard = [sum(sizes[:part]) for part in range(len(sizes))]
        samples = [order.num_samples for order in self.orders]
        self._first_number = [sum(samples[:part]) for part in range(len(samples))]
        # Share of a set among itself and those after it.
        self._shares = [
            round(2**_BITS * weight / sum(weights[part:])) for part, weight in enumerate(weights)
        ]
        self._phases: dict[int, list[int]] = {}

    def update(self, step: int, lanes: range) -> list[SampleRef]:
        """The samples of these lanes in a step, lane by lane."""
        slots = range(step * self.per_lane, (step + 1) * self.per_lane)
        return [self._sample(lane, slot) for lane in lanes for slot in slots]

    def shards_at(self, step: int, lanes: range) -> list[int]:
        """The shards of the blocks that these lanes are in at a step, each once."""
        found = []
        for lane in lanes:
            begun = self.counts(lane, step * self.per_lane)
            ends = self._ends(lane, step)
            for part, order in enumerate(self.orders):
                shards = order.shards_between(lane, begun[part], ends[part])
                found.append([self._first_shard[part] + shard for shard in shards])
        return merge(found)

    def next_change(self, step: int, lanes: range) -> int:
        """The first step after ``step`` in which a lane enters another block of a set."""
        return min(
            self._step_beyond(lane, part, order.next_block(end - 1), step)
            for lane in lanes
            for part, (order, end) in enumerate(
                zip(self.orders, self._ends(lane, step), strict=True)
            )
        )

    def counts(self, lane: int, slots: int) -> list[int]:
        """How many of a lane's first ``slots`` slots belong to each set."""
        if lane not in self._phases:
            # Its own phase, so that not all lanes take the same set at the same time.
            words = [hash_words(self.seed, _PHASE, lane, part) for part in range(len(self._shares))]
            self._phases[lane] = [int(word) >> (64 - _BITS) for word in words]
        found: list[int] = []
        left = slots
        for share, phase in zip(self._shares[:-1], self._phases[lane], strict=False):
            found.append((left * share + phase) >> _BITS)
            left -= found[-1]
        return [*found, left]

    def _sample(self, lane: int, slot: int) -> SampleRef:
        before, after = self.counts(lane, slot), self.counts(lane, slot + 1)
        part = next(p for p in range(len(before)) if after[p] > before[p])
        number, epoch = self.orders[part].sample(lane, before[part])
        return SampleRef(self._first_number[part] + number, epoch)

    def _ends(self, lane: int, step: int) -> list[int]:
        """For each set, the end of the places of its lane that are in use at ``step``.

        The place of a set's next sample counts even if this step takes none of it.
        """
        before = self.counts(lane, step * self.per_lane)
        after = self.counts(lane, (step + 1) * self.per_lane)
        return [max(end, begun + 1) for begun, end in zip(before, after, strict=True)]

    def _step_beyond(self, lane: int, part: int, place: int, step: int) -> int:
        """The first step after ``step`` that uses places of a set's lane beyond ``place``."""
        low, stride = step + 1, 1
        while self._ends(lane, low + stride)[part] <= place:
            low, stride = low + stride, 2 * stride
        return low + bisect_right(
            range(stride + 1), place, key=lambda ahead: self._ends(lane, low + ahead)[part]
        )
