"""The order of samples, against brute force and against integers computed without numpy."""

from collections import Counter

import numpy as np
import pytest

from ssl_vit.data.order import (
    SampleOrder,
    SampleRandomness,
    SampleRef,
    hash_words,
    lanes_of_rank,
    permutation,
    splitmix64,
)
from ssl_vit.errors import UserError

SHARD_SIZES = ([100], [7, 1, 5, 30], [3] * 21, [64, 0, 9])


def epochs_seen(order: SampleOrder, epochs: int) -> list[Counter[int]]:
    """How often each sample comes in each of the first epochs."""
    seen = [Counter[int]() for _ in range(epochs)]
    steps = -(-epochs * order.lane_length // order.per_lane)
    for step in range(steps):
        for ref in order.update(step, range(order.lanes)):
            if ref.epoch < epochs:
                seen[ref.epoch][ref.number] += 1
    return seen


@pytest.mark.parametrize("sizes", SHARD_SIZES)
@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("per_lane", [1, 3])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_an_epoch_shows_no_sample_twice_and_misses_fewer_than_there_are_lanes(
    sizes: list[int], lanes: int, per_lane: int, block: int
):
    order = SampleOrder(sizes, lanes, lanes * per_lane, block, seed=5)
    for seen in epochs_seen(order, epochs=3):
        assert max(seen.values()) == 1
        assert set(seen) <= set(range(sum(sizes)))
        assert len(seen) > sum(sizes) - lanes


def test_no_sample_is_left_out_of_every_epoch():
    # One shard: only the turning of the row, not the order of shards, changes who is left out.
    order = SampleOrder([11], lanes=4, global_batch_size=4, shuffle_block=4, seed=0)
    assert len(set().union(*epochs_seen(order, epochs=12))) == 11


def test_ranks_together_take_the_same_samples_whatever_their_number():
    for step in (0, 1, 17, 12345):
        updates = []
        for world_size in (1, 2, 4):
            refs: list[SampleRef] = []
            for rank in range(world_size):
                # A rank has an order object of its own, as it has in a real run.
                order = SampleOrder([40, 3, 25], 8, 24, shuffle_block=5, seed=1)
                refs += order.update(step, lanes_of_rank(8, rank, world_size))
            updates.append(refs)
        assert updates[0] == updates[1] == updates[2]
        assert len(updates[0]) == 24


def test_a_step_reached_at_once_is_the_one_reached_step_by_step():
    def order() -> SampleOrder:
        return SampleOrder([40, 3, 25], 4, 12, shuffle_block=5, seed=1)

    walked = order()
    updates = [walked.update(step, range(4)) for step in range(60)]
    assert [order().update(step, range(4)) for step in range(60)] == updates
    assert walked.update(3, range(4)) == updates[3]  # and going back changes nothing


def test_step_ten_billion_is_as_near_as_the_first():
    order = SampleOrder([10_000] * 50, 64, 256, shuffle_block=1024, seed=0)
    refs = order.update(10**10, range(64))
    assert {ref.epoch for ref in refs} == {10**10 * 4 // (500_000 // 64)}
    assert len({ref.number for ref in refs}) == 256


def test_epochs_and_seeds_have_orders_of_their_own():
    def epoch(seed: int, number: int) -> list[int]:
        order = SampleOrder([30, 30], 4, 4, shuffle_block=8, seed=seed)
        steps = range(number * 15, (number + 1) * 15)
        return [ref.number for step in steps for ref in order.update(step, range(4))]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_epochs_and_lanes_are_shuffled_not_only_shifted():
    order = SampleOrder([60], lanes=2, global_batch_size=2, shuffle_block=30, seed=0)
    steps = set()
    for epoch in range(3):
        for lane in range(2):
            refs = [order.update(epoch * 30 + n, range(lane, lane + 1))[0] for n in range(30)]
            steps.add(tuple(np.diff([ref.number for ref in refs]) % 60))  # a shift leaves it
    assert len(steps) == 6


def test_every_epoch_has_its_own_order_of_shards():
    # Shards of one sample and blocks of one: nothing but the order of shards is left.
    order = SampleOrder([1] * 40, lanes=1, global_batch_size=1, shuffle_block=1, seed=0)
    steps = set()
    for epoch in range(3):
        numbers = [order.update(epoch * 40 + n, range(1))[0].number for n in range(40)]
        first = numbers.index(0)
        steps.add(tuple(numbers[first:] + numbers[:first]))
    assert len(steps) == 3


def test_a_lane_stays_near_its_block_of_shards():
    order = SampleOrder([100] * 100, lanes=4, global_batch_size=400, shuffle_block=200, seed=3)
    shards = {ref.number // 100 for ref in order.update(0, range(1, 2))}
    assert len(shards) <= 3  # 200 neighbors touch two whole shards, or parts of three


def test_processes_that_do_not_fit_are_told_which_do():
    with pytest.raises(UserError, match="run on 1, 2, 3, 4, 6, 12 processes") as caught:
        lanes_of_rank(12, 0, 5)
    assert "5 processes do not divide data.lanes=12" in caught.value.problem
    assert [lanes_of_rank(12, rank, 3) for rank in range(3)] == [
        range(0, 4),
        range(4, 8),
        range(8, 12),
    ]


def test_a_batch_or_a_set_that_lanes_do_not_fit_is_refused():
    with pytest.raises(UserError, match="does not divide"):
        SampleOrder([100], lanes=8, global_batch_size=12, shuffle_block=8, seed=0)
    with pytest.raises(UserError, match=r"data\.lanes=4"):
        SampleOrder([3, 4], lanes=8, global_batch_size=8, shuffle_block=8, seed=0)


def test_the_randomness_of_a_sample_is_its_own():
    def draws(seed: int, number: int, epoch: int) -> tuple[float, ...]:
        rng = SampleRandomness(seed).of(SampleRef(number, epoch))
        return tuple(rng.random() for _ in range(4))

    assert draws(0, 7, 2) == draws(0, 7, 2)
    others = {draws(*words) for words in [(0, 7, 2), (0, 8, 2), (0, 7, 3), (1, 7, 2), (0, 2, 7)]}
    assert len(others) == 5


def test_the_randomness_of_a_sample_is_uniform_over_samples():
    randomness = SampleRandomness(0)
    first = np.array([randomness.of(SampleRef(number, 0)).random() for number in range(2000)])
    counts, _ = np.histogram(first, bins=10, range=(0, 1))
    assert counts.sum() == 2000
    assert abs(counts - 200).max() < 5 * 200**0.5  # five standard deviations


def splitmix64_by_integers(value: int, key: int) -> int:
    word = 2**64
    mixed = ((value + 1) * 0x9E3779B97F4A7C15 + key) % word
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % word
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % word
    return mixed ^ mixed >> 31


def test_splitmix64_gives_the_published_numbers():
    # Seed 1234567, as listed for "Pseudo-random numbers/Splitmix64" on Rosetta Code.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(np.arange(5, dtype=np.uint64), np.uint64(1234567)).tolist() == published
    assert [splitmix64_by_integers(value, 1234567) for value in range(5)] == published


def test_permutations_never_change():
    # Computed with Python's integers alone; a run resumed with another numpy needs the same ones.
    assert permutation(10, 0).tolist() == [5, 7, 8, 2, 9, 0, 3, 1, 6, 4]
    assert permutation(10, 42, 3, 7).tolist() == [1, 5, 0, 9, 3, 7, 6, 2, 4, 8]
    assert int(hash_words(1, 2, 3)) == 2869315087210772132


def test_a_permutation_is_the_order_of_hashed_numbers():
    for words in [(0,), (1, 2), (2**64 - 1, 5), (-3, 1)]:
        key = 0
        for word in words:
            key = splitmix64_by_integers(word % 2**64, key)
        expected = sorted(range(500), key=lambda i, key=key: splitmix64_by_integers(i, key))
        assert permutation(500, *words).tolist() == expected
