"""Exact: what step t is made of follows from (seed, t) and the data, and from nothing else.

Property tests over numbers of processes, workers, micro-batches, lanes, shards and kill points;
`pytest -k exact` runs them all.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache as remember
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_vit.data import order as order_module
from ssl_vit.data.access_plan import TrainingAccess
from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.loader import LoadedBatches, LoaderSettings, UpdateSampler, build_loader
from ssl_vit.data.mixture import MixedOrder
from ssl_vit.data.order import Order, SampleOrder, SampleRef, lanes_of_rank
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.data.sources import open_shards
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_views
from ssl_vit.objectives.config import MaeConfig
from tests.synthetic import write_shards

QUICK = settings(max_examples=60, deadline=None)
# Each example starts processes.
SLOW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

sizes_of_shards = st.lists(st.integers(0, 40), min_size=1, max_size=12)
world_sizes = st.sampled_from([1, 2, 3, 4, 6, 12])


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, int, list[int]]:
    """(an order of one set or a mixture, its lanes, samples of each set)."""
    lanes = draw(st.sampled_from([1, 2, 4, 12]))
    per_lane = draw(st.integers(1, 4))
    block = draw(st.integers(1, 50))
    seed = draw(st.integers(0, 2**40))
    count = draw(st.integers(1, 3))
    sets = [draw(sizes_of_shards.filter(lambda sizes: sum(sizes) >= lanes)) for _ in range(count)]
    members = [
        SampleOrder(sizes, lanes, lanes * per_lane, block, seed + number)
        for number, sizes in enumerate(sets)
    ]
    if count == 1:
        return members[0], lanes, [sum(sets[0])]
    weights = [draw(st.floats(0.01, 100)) for _ in range(count)]
    return MixedOrder(members, weights, seed), lanes, [sum(sizes) for sizes in sets]


@given(drawn=orders(), world_size=world_sizes, steps=st.lists(st.integers(0, 10**6), max_size=5))
@QUICK
def test_exact_steps_are_the_same_for_every_number_of_processes(
    drawn: tuple[Order, int, list[int]], world_size: int, steps: list[int]
):
    order, lanes, _ = drawn
    if lanes % world_size:
        world_size = 1
    for step in steps:
        whole = order.update(step, range(lanes))
        parts = [
            ref
            for rank in range(world_size)
            for ref in order.update(step, lanes_of_rank(lanes, rank, world_size))
        ]
        assert parts == whole


@given(drawn=orders(), micro=st.integers(1, 7), kills=st.lists(st.integers(0, 30), max_size=4))
@QUICK
def test_exact_steps_are_the_same_however_often_the_run_was_killed_and_however_it_is_cut(
    drawn: tuple[Order, int, list[int]], micro: int, kills: list[int]
):
    order, lanes, _ = drawn
    whole = [order.update(step, range(lanes)) for step in range(30)]
    seen: list[list[SampleRef]] = []
    # A run is killed at each of these steps, and goes on from one that it had made.
    for stop in [*sorted(kills), 30]:
        start = len(seen)
        sampler = UpdateSampler(order, range(lanes), micro, start, max(stop, start))
        refs = [ref for batch in sampler for ref in batch]
        size = len(whole[0])
        seen += [refs[first : first + size] for first in range(0, len(refs), size)]
    assert seen == whole


@given(drawn=orders())
@QUICK
def test_exact_epochs_show_each_sample_at_most_once_and_miss_fewer_than_there_are_lanes(
    drawn: tuple[Order, int, list[int]],
):
    order, lanes, sizes = drawn
    starts = np.cumsum([0, *sizes])
    epochs: Counter[tuple[int, int]] = Counter()
    seen: Counter[SampleRef] = Counter()
    for step in range(60):
        for ref in order.update(step, range(lanes)):
            seen[ref] += 1
            epochs[int(starts.searchsorted(ref.number, side="right")) - 1, ref.epoch] += 1
    assert max(seen.values()) == 1
    for (part, epoch), count in epochs.items():
        # An epoch that the next one follows in every lane is over.
        if epochs.get((part, epoch + 2)):
            assert sizes[part] - lanes < count <= sizes[part]


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=4),
    step=st.sampled_from([1, 10, 1000, 10**6, 10**10]),
    seed=st.integers(0, 2**30),
)
@QUICK
def test_exact_mixtures_keep_their_proportions_at_every_step(
    weights: list[float], step: int, seed: int
):
    lanes, per_lane = 4, 3
    members = [SampleOrder([50], lanes, lanes * per_lane, 10, seed) for _ in weights]
    order = MixedOrder(members, weights, seed)
    for lane in range(lanes):
        counts = order.counts(lane, step * per_lane)
        assert sum(counts) == step * per_lane
        for count, weight in zip(counts, weights, strict=True):
            expected = step * per_lane * weight / sum(weights)
            # One slot for each set before it in the list, and the 32 bits of a weight.
            assert abs(count - expected) <= len(weights) + step * per_lane * 2**-30
        again = MixedOrder(members, weights, seed)
        assert again.counts(lane, step * per_lane) == counts


def test_exact_mixtures_follow_their_seed_and_lanes_do_not_march_in_step():
    members = [SampleOrder([50], 8, 8, 10, 0) for _ in range(2)]
    order = MixedOrder(members, [1.0, 1.0], 0)
    first = [[order.counts(lane, slot)[0] for slot in range(5)] for lane in range(8)]
    assert len({tuple(counts) for counts in first}) > 1
    other = MixedOrder(members, [1.0, 1.0], 1)
    assert first != [[other.counts(lane, slot)[0] for slot in range(5)] for lane in range(8)]


def test_exact_starts_cost_the_same_at_step_ten_and_at_step_ten_million(
    monkeypatch: pytest.MonkeyPatch,
):
    # Not seconds but work is compared: the permutations made, and their sizes.
    def work(start: int) -> list[int]:
        made: list[int] = []
        plain = order_module.permutation

        def counting(size: int, *words: int) -> np.ndarray:
            made.append(size)
            return plain(size, *words)

        with monkeypatch.context() as patch:
            patch.setattr(order_module, "permutation", counting)
            members = [SampleOrder([1000] * 50, 16, 64, 500, seed) for seed in range(2)]
            order = MixedOrder(members, [3.0, 1.0], 0)
            next(iter(UpdateSampler(order, range(16), 64, start, start + 1)))
        return sorted(made)

    at_ten, at_ten_million = work(10), work(10_000_000)
    # A lane whose four slots cross into the next block or epoch needs both.
    assert len(at_ten_million) <= len(at_ten) + 2 * 16 + 2
    assert max(at_ten_million) <= 500


# --- the samples themselves: keys, crops and masks, out of real data workers ---


@remember
def shard_folder(root: Path, shard_bytes: int) -> Path:
    return write_shards(root / str(shard_bytes), per_class=30, shard_bytes=shard_bytes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def load(
    folder: Path, lanes: int, layout: tuple[int, int, int], steps: range, seed: int = 5
) -> list[list[tuple[str, bytes, bytes]]]:
    """(key, pixels, mask) of every sample of every step, sorted within it.

    Args:
        layout: Processes, data workers of each, images of a micro-batch.
    """
    world_size, workers, micro = layout
    shards = open_shards(folder)
    sizes = [shard.num_samples for shard in shards.shards]
    views = build_views(MaeConfig(), VitConfig(image_size=32, patch_size=8))
    updates: list[list[tuple[str, bytes, bytes]]] = [[] for _ in steps]
    for rank in range(world_size):
        # Every rank has objects of its own, as it has in a real run.
        order = SampleOrder(sizes, lanes, 12, 7, seed)
        mine = lanes_of_rank(lanes, rank, world_size)
        share = 12 // world_size
        micro_batch = min(micro, share)
        sampler = UpdateSampler(order, mine, micro_batch, steps.start, steps.stop)
        access_plan = TrainingAccess(order, mine, steps.stop)
        loader = build_loader(
            TrainingBatches(open_shards(folder), views, seed),
            sampler,
            micro_batch,
            LoaderSettings(workers, prefetch=2, pin_memory=False),
        )
        prefetcher = ShardPrefetcher(shards.shards, shards.cache, access_plan, verifies=False)
        batches = LoadedBatches(loader, prefetcher, lambda batch: batch)
        for place in range(len(steps)):
            left = share
            while left:
                batch: Any = next(batches).batch
                left -= len(batch.numbers)
                updates[place] += describe(shards, batch)
        batches.close()
    return [sorted(update) for update in updates]


def describe(shards: Any, batch: Any) -> list[tuple[str, bytes, bytes]]:
    return [
        (
            shards.key(int(number)),
            batch.images[row].contiguous().numpy().tobytes(),
            batch.hidden[row].numpy().tobytes(),
        )
        for row, number in enumerate(batch.numbers.tolist())
    ]


@given(
    world_size=st.sampled_from([1, 2, 3, 6]),
    workers=st.sampled_from([0, 1, 2, 3]),
    micro=st.sampled_from([1, 2, 4, 12]),
    killed_at=st.integers(0, 4),
    shard_bytes=st.sampled_from([8_000, 40_000, 10**6]),
)
@SLOW
def test_exact_keys_crops_and_masks_whatever_loads_them(
    root: Path, world_size: int, workers: int, micro: int, killed_at: int, shard_bytes: int
):
    """Down to one shard for all ranks and workers."""
    folder = shard_folder(root, shard_bytes)
    expected = load(folder, 6, (1, 0, 12), range(5))
    layout = (world_size, workers, micro)
    before = load(folder, 6, layout, range(killed_at)) if killed_at else []
    after = load(folder, 6, (1, 1, 3), range(killed_at, 5))
    assert before + after == expected
    assert len({key for update in expected for key, _, _ in update}) > 30


def test_exact_crops_and_masks_follow_the_seed_and_the_epoch(root: Path):
    folder = shard_folder(root, 40_000)
    one = load(folder, 6, (1, 0, 12), range(1))
    other = load(folder, 6, (1, 0, 12), range(1), seed=6)
    assert one != other
    # The same image in two epochs: other pixels, another mask.
    views: dict[str, list[tuple[bytes, bytes]]] = {}
    for update in load(folder, 6, (1, 0, 12), range(10)):
        for key, pixels, mask in update:
            views.setdefault(key, []).append((pixels, mask))
    twice: Sequence[list[tuple[bytes, bytes]]] = [seen for seen in views.values() if len(seen) == 2]
    assert len(twice) > 40
    assert all(first[0] != second[0] and first[1] != second[1] for first, second in twice)


def test_exact_memory_is_reused_only_after_two_more_batches(root: Path):
    folder = shard_folder(root, 40_000)
    shards = open_shards(folder)
    order = SampleOrder([shard.num_samples for shard in shards.shards], 6, 6, 7, 0)
    views = build_views(MaeConfig(), VitConfig(image_size=32, patch_size=8))
    loader = build_loader(
        TrainingBatches(shards, views, 0),
        UpdateSampler(order, range(6), 6, 0, 40),
        6,
        LoaderSettings(workers=2, prefetch=2, pin_memory=False),
    )
    prefetcher = ShardPrefetcher(
        shards.shards, shards.cache, TrainingAccess(order, range(6), 40), verifies=False
    )
    batches = LoadedBatches(loader, prefetcher, lambda batch: batch)
    before, copy = None, None
    for _ in range(40):
        loaded = next(batches)
        if before is not None:
            assert copy is not None
            assert torch.equal(before.batch.images, copy)
        before, copy = loaded, loaded.batch.images.clone()
    batches.close()
