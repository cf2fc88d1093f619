"""Held-out images: which, and the rest as a shard set of its own."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.labels import hold_out, hold_out_groups
from ssl_vit.data.sources import open_shards
from ssl_vit.data.subset import SubsetOfShards
from tests.synthetic import write_shards


def test_every_class_gives_its_share() -> None:
    labels = np.array([0] * 50 + [1] * 20 + [2] * 2 + [3])
    kept, held = hold_out(labels, 0.1)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held], minlength=4).tolist() == [5, 2, 1, 0]
    assert np.array_equal(hold_out(labels, 0.1)[1], held)
    assert not np.array_equal(hold_out(labels, 0.1, seed=1)[1], held)
    # The first of a class are not more likely than the last.
    firsts = [hold_out(np.zeros(40, int), 0.25, seed)[1].mean() for seed in range(40)]
    assert np.mean(firsts) == pytest.approx(19.5, abs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def test_a_subset_has_the_samples_it_kept(folder: Path) -> None:
    whole = open_shards(str(folder))
    assert len(whole.shards) > 2
    # The second shard loses all of its samples.
    numbers = np.arange(whole.num_samples)
    in_second = (numbers >= whole.starts[1]) & (numbers < whole.starts[2])
    kept = numbers[(numbers % 3 != 0) & ~in_second]
    subset = SubsetOfShards(whole, kept)
    again = pickle.loads(pickle.dumps(subset))
    assert subset.num_samples == len(kept) == again.num_samples
    assert subset.starts[1] == subset.starts[2]
    assert [part.num_samples for part in subset.parts] == [len(kept)]
    assert np.array_equal(subset.labels, whole.labels[kept])
    records = [subset.records_of(shard) for shard in range(len(whole.shards))]
    assert [len(each) for each in records] == np.diff(subset.starts).tolist()
    assert np.array_equal(np.concatenate(records)["label"], subset.labels)
    for number, original in enumerate(kept.tolist()):
        for each in (subset, again):
            assert each.read(number) == whole.read(original)
            assert each.key(number) == whole.key(original)
            assert each.record(number) == whole.record(original)
            assert each.location_of(number) == whole.location_of(original)
    assert subset.fingerprint == whole.fingerprint
    assert subset.source == whole.source


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 600)
    labels = np.where(groups == 7, 3, rng.integers(0, 3, 600))  # class 3 is all in one group
    kept, held = hold_out_groups(labels, groups, 0.1, seed)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(600))
    assert not set(groups[kept]) & set(groups[held])
    assert set(labels[kept]) == {0, 1, 2, 3}
    wanted = 0.1 * np.bincount(labels)[:3]
    found = np.bincount(labels[held], minlength=4)[:3]
    assert (np.abs(found - wanted) <= 10).all()  # about a group
    assert np.array_equal(hold_out_groups(labels, groups, 0.1, seed)[1], held)


def test_groups_of_one_image_are_held_out_like_images() -> None:
    labels = np.array([0] * 50 + [1] * 20 + [2])
    kept, held = hold_out_groups(labels, np.arange(71) * 5, 0.1)
    assert np.bincount(labels[held]).tolist() == [5, 2]
    assert len(kept) == 64


def test_one_group_cannot_be_divided() -> None:
    kept, held = hold_out_groups(np.array([0, 0, 1, 1]), np.zeros(4, int), 0.25)
    assert len(held) == 0
    assert len(kept) == 4
