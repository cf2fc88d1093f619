"""Online probes: the same images whoever asks, and accuracies that mean something."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_vit.data.index_file import Index, describe_shard, read_index, write_index
from ssl_vit.data.labels import check_probed, choose_images
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.monitors.labeled_images import read_labeled_images
from ssl_vit.monitors.probes import Probe, Probed, linear_accuracy
from tests.command_line import losses, ssl_vit, torchrun
from tests.synthetic import write_shards

PER_CLASS = 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), per_class=PER_CLASS)


@pytest.fixture(scope="module")
def opened(shards: Path) -> ShardSet:
    return open_shards(str(shards))


def test_images_are_chosen_from_all_classes_alike_and_always_the_same(opened: ShardSet):
    count = 6 * len(opened.classes)
    train, test = choose_images(opened, count)
    again = choose_images(opened, count)
    assert np.array_equal(train, again[0])
    assert np.array_equal(test, again[1])
    both = np.concatenate([train, test])
    assert len(np.unique(both)) == len(both) == count
    assert len(test) == count // 4
    assert (np.bincount(opened.labels[both]) == 6).all()


def probe_of(shards: ShardSet, count: int, rank: int = 0, world_size: int = 1) -> Probe:
    return Probe(read_labeled_images(shards, count, (32, 32), rank, world_size), every_steps=1)


@pytest.mark.parametrize("count", [30, 31])
def test_all_ranks_together_have_every_image_and_each_has_as_many(opened: ShardSet, count: int):
    alone = probe_of(opened, count)
    parts = [probe_of(opened, count, rank, 3) for rank in range(3)]
    everyone = torch.cat([part.places for part in parts])
    assert everyone.unique().tolist() == list(range(count))
    # At ZeRO-3 a rank that made one more pass would wait for the others for ever.
    assert {len(part.images) for part in parts} == {-(-count // 3)}
    for part in parts:
        assert torch.equal(part.images, alone.images[part.places])
        assert torch.equal(part.labels, alone.labels)


def test_accuracies_are_1_where_features_say_the_class_and_chance_where_they_do_not(
    opened: ShardSet,
):
    probe = probe_of(opened, 40)
    telling = torch.nn.functional.one_hot(probe.labels).float()
    generator = torch.Generator().manual_seed(0)
    silent = torch.randn(telling.shape, generator=generator)
    order = torch.randperm(40, generator=generator)
    halves = [
        Probed(places, torch.stack([telling[places], silent[places]], dim=1))
        for places in order.split(25)
    ]
    found = probe.accuracies(halves)
    assert found["probe/knn_cls"] == found["probe/linear_cls"] == 1
    assert found["probe/knn_mean"] < 0.9
    assert found["probe/linear_mean"] < 0.9


def test_features_that_are_not_finite_have_no_accuracy(opened: ShardSet):
    probe = probe_of(opened, 40)
    assert probe.accuracies([Probed(probe.places, torch.full((40, 2, 4), torch.nan))]) == {}


@pytest.mark.parametrize("huge", [torch.inf, 1e30])
def test_one_vector_too_long_to_measure_leaves_no_accuracy(opened: ShardSet, huge: float):
    probe = probe_of(opened, 40)
    features = torch.randn(40, 2, 4, generator=torch.Generator().manual_seed(0))
    assert len(probe.accuracies([Probed(probe.places, features)])) == 4
    features[7, 1, 2] = huge
    assert probe.accuracies([Probed(probe.places, features)]) == {}


def test_features_that_are_all_the_same_have_finite_accuracies(opened: ShardSet):
    probe = probe_of(opened, 40)
    for value in (0.0, 0.1, 1e-30):
        found = probe.accuracies([Probed(probe.places, torch.full((40, 2, 4), value))])
        assert all(0 <= accuracy <= 1 for accuracy in found.values()), found


def with_labels(shards: Path, folder: Path, labels: list[int]) -> ShardSet:
    """The same images with other labels, as many classes as these need."""
    shutil.copytree(shards, folder)
    index, records = read_index(folder), np.load(folder / "samples.npy")
    records["label"] = (labels + [-1] * len(records))[: len(records)]
    starts = np.cumsum([0, *(shard.num_samples for shard in index.shards)])
    parts = [
        records[start : start + shard.num_samples]
        for start, shard in zip(starts, index.shards, strict=False)
    ]
    described = tuple(
        describe_shard(shard.url, shard.num_bytes, shard.sha256, part)
        for shard, part in zip(index.shards, parts, strict=True)
    )
    names = tuple(f"c{number:02d}" for number in range(max(labels) + 1))
    write_index(folder, Index(described, names, None), parts)
    return open_shards(str(folder))


def test_no_class_is_in_test_alone(shards: Path, tmp_path: Path):
    # Two classes of five images, and ten of one.
    labels = [0, 1] * 5 + list(range(2, 12))
    opened = with_labels(shards, tmp_path / "some", labels)
    for seed in range(20):
        train, test = choose_images(opened, 20, seed)
        assert sorted([*train, *test]) == list(range(20))
        assert set(opened.labels[test]) <= set(opened.labels[train]) & {0, 1}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (list(range(24)), "24 labeled images of .* in 24 classes: too few for a class"),
        ([0] * 24, "all labeled images of .* are of one class"),
    ],
)
def test_labels_that_no_probe_can_use_are_refused(
    shards: Path, tmp_path: Path, labels: list[int], message: str
):
    opened = with_labels(shards, tmp_path / "some", labels)
    with pytest.raises(UserError, match=message):
        check_probed(opened, 2_000)
    words = ["pretrain", "mae_vits16", "--smoke", f"data.shards={shards}"]
    done = ssl_vit(*words, "--run", tmp_path / "run", f"monitor.labeled={tmp_path / 'some'}")
    assert done.returncode == 2
    assert [line[:6] for line in done.stderr.splitlines()] == ["error:", "fix:  "]
    assert not (tmp_path / "run").exists()


def test_the_ridge_is_chosen_by_leaving_one_out():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(60, 40, generator=generator) for _ in range(2))
    direction = torch.randn(40, generator=generator)
    labels, test_labels = ((rows @ direction > 0).long() for rows in (train, test))
    found = linear_accuracy(train, labels, test, test_labels, 2)

    def loop(ridge: float) -> tuple[float, float]:
        """Accuracy left out, and on test; refitted for each image."""

        def fit(rows: torch.Tensor, of: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
            targets = torch.nn.functional.one_hot(of, 2).double()
            mean, offset = rows.mean(dim=0), targets.mean(dim=0)
            weights = torch.linalg.solve(
                (rows - mean).T @ (rows - mean) + ridge * torch.eye(40),
                (rows - mean).T @ (targets - offset),
            )
            return ((asked - mean) @ weights + offset).argmax(dim=1)

        right = 0
        for place in range(60):
            others = torch.arange(60) != place
            answer = fit(train[others].double(), labels[others], train[place : place + 1].double())
            right += int(answer.item() == labels[place])
        on_test = fit(train.double(), labels, test.double()) == test_labels
        return right / 60, float(on_test.double().mean())

    centered = (train - train.mean(dim=0)).double()
    scale = float(torch.linalg.eigvalsh(centered.T @ centered).mean())
    tried = [loop(factor * scale) for factor in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    assert found == pytest.approx(max(tried, key=lambda each: each[0])[1], abs=1 / 60 + 1e-9)


def test_a_run_is_probed_and_learns_nothing_of_it(tmp_path: Path, shards: Path):
    words = ["pretrain", "mae_vits16", "--smoke", f"data.shards={shards}", "schedule.length=6"]
    probing = ["monitor.labeled_every_steps=4", "monitor.labeled_images=40"]
    probing += [f"monitor.labeled={shards}", "monitor.every_steps=2"]
    plain = ssl_vit(*words, "--run", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    probed = ssl_vit(*words, *probing, "--run", tmp_path / "probed")
    assert probed.returncode == 0, probed.stderr
    assert losses(tmp_path / "probed") == losses(tmp_path / "plain")
    assert "before training: k-NN" in probed.stderr
    lines = read(tmp_path / "probed")
    assert [line["step"] for line in lines if "probe/knn_cls" in line] == [4, 6]
    assert [line["step"] for line in lines if "monitor/rankme" in line] == [2, 4, 6]
    both = torchrun(2, *words, *probing, "engine.zero_stage=3", "--run", tmp_path / "sharded")
    assert both.returncode == 0, both.stderr
    for one, two in zip(lines, read(tmp_path / "sharded"), strict=True):
        for name in (name for name in one if name.startswith("probe/")):
            assert two[name] == pytest.approx(one[name], abs=0.11), name  # of ten test images


def test_labels_that_are_not_there_are_refused(tmp_path: Path, shards: Path):
    words = ["pretrain", "mae_vits16", "--smoke", f"data.shards={shards}"]
    done = ssl_vit(*words, "--run", tmp_path / "run", f"monitor.labeled={tmp_path / 'none'}")
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr
    assert not (tmp_path / "run").exists()


def read(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
