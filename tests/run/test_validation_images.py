"""Which images a run is validated on."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.labels import renumbered
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.recipes import find_recipe
from ssl_vit.run.config import RunConfig
from ssl_vit.run.validation import split_data
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.command_line import ssl_vit
from tests.synthetic import write_images, write_shards


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def config(**settings: object) -> RunConfig:
    whole = find_recipe("finetune_small_data")
    return whole.model_copy(update={"objective": whole.objective.model_copy(update=settings)})


def packed(folder: Path, classes: tuple[str, ...]) -> Path:
    write_images(folder / "images", 3, classes)
    pack_images(folder / "images", folder / "shards", PackOptions(40_000))
    return folder / "shards"


def test_a_tenth_of_every_class_is_held_out_and_not_trained_on(train: Path) -> None:
    whole = open_shards(str(train))
    split = split_data(config(), whole, ShardCache())
    assert split.train is not None
    assert split.validation is not None
    assert np.bincount(split.validation.labels).tolist() == [2, 2]
    held = {whole.key(int(number)) for number in split.validation.numbers}
    kept = {split.train.key(number) for number in range(split.train.num_samples)}
    assert len(held) == 4
    assert len(kept) == 44
    assert not held & kept
    assert "4 images, held out of 48 (10% of each class)" in split.notes[0]


def test_images_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 24)
    lines = ["path,label,patient"]
    for name in "ab":
        lines += [f"{name}/{number:03d}.png,{name},p{number % 8}" for number in range(24)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    command = ("shards", "pack", tmp_path / "images", tmp_path / "shards")
    manifest = ("--manifest", tmp_path / "list.csv", "--group-column", "patient")
    done = ssl_vit(*command, *manifest)
    assert done.returncode == 0, done.stderr
    assert "8 groups by the column patient" in done.stdout
    split = split_data(config(), open_shards(str(tmp_path / "shards")), ShardCache())
    assert split.train is not None
    assert split.validation is not None
    whole = split.validation.shards

    def patients(numbers: Iterable[int]) -> set[int]:
        return {int(whole.key(number).rpartition("/")[2]) % 8 for number in numbers}

    held = patients(split.validation.numbers.tolist())
    kept = {int(split.train.key(n).rpartition("/")[2]) % 8 for n in range(split.train.num_samples)}
    assert len(held) == 1
    assert held | kept == set(range(8))
    assert not held & kept
    assert "(10% of each class; 1 of 8 groups, each whole)" in split.notes[0]


def test_shards_of_their_own_are_matched_by_the_names_of_classes(
    train: Path, tmp_path: Path
) -> None:
    own = packed(tmp_path, ("B", "b"))
    assert open_shards(str(own)).classes == ("B", "b")
    with pytest.raises(UserError, match=r"has images of B, and .* has no such class \(a, b\)"):
        split_data(config(validation=str(own)), open_shards(str(train)), ShardCache())
    only_b = packed(tmp_path / "other", ("b",))
    split = split_data(config(validation=str(only_b)), open_shards(str(train)), ShardCache())
    assert split.validation is not None
    assert split.validation.labels.tolist() == [1, 1, 1]  # 0 in their own index
    assert split.train is not None
    assert split.train.num_samples == 48


def test_nothing_is_held_out_where_nobody_wants_it(train: Path) -> None:
    shards = open_shards(str(train))
    for each in (config(held_out=0.0), find_recipe("mae_small_data")):
        assert split_data(each, shards, ShardCache())[:2] == (shards, None)


def test_training_images_are_no_validation_images(train: Path) -> None:
    with pytest.raises(UserError, match=r"have shard .* in common"):
        split_data(config(validation=str(train)), open_shards(str(train)), ShardCache())


def test_classes_with_one_name_are_not_guessed(train: Path, tmp_path: Path) -> None:
    theirs = open_shards(str(packed(tmp_path, ("a", "b"))))
    assert np.array_equal(renumbered(theirs, ("b ", "a")), 1 - theirs.labels)
    theirs.classes = ("a", "a")
    assert np.array_equal(renumbered(theirs, ("a", "a")), theirs.labels)
    with pytest.raises(UserError, match=r"several classes of .* are named a"):
        renumbered(theirs, ("a", "b"))
