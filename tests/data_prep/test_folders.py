"""What folders mean: sets, classes, wrappers. Oracle: the tree that the test wrote."""

from pathlib import Path

import pytest

from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.pack import PackSummary, pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.command_line import ssl_vit
from tests.data_prep.test_pack import everything, fill, refused


def labels_in(folder: Path) -> dict[str, str]:
    """Key → name of the class, empty for none."""
    shards = open_shards(folder)
    names = ["" if label < 0 else shards.classes[label] for label in shards.labels]
    return {shards.key(number): name for number, name in enumerate(names)}


def pack_paths(tmp_path: Path, paths: list[str], **options: object) -> PackSummary:
    fill(tmp_path / "images", paths)
    chosen = PackOptions(**options)  # type: ignore[arg-type] - the test's own
    return pack_images(tmp_path / "images", tmp_path / "shards", chosen)


@pytest.mark.parametrize(
    ("train", "val", "test", "base"),
    [
        ("train", "val", "test", ""),
        ("Training", "VALID", "testing", ""),
        ("train", "validation", "Test", "my data/v1/"),
    ],
)
def test_split_folders_are_sets_with_one_numbering_of_classes(
    train: str, val: str, test: str, base: str, tmp_path: Path
):
    paths = [f"{train}/{kind}/{n}.jpg" for kind in ("ant", "bee", "cat") for n in range(3)]
    paths += [f"{val}/cat/{n}.jpg" for n in range(2)] + [f"{test}/bee/deep/er/0.jpg"]
    made = pack_paths(tmp_path, [f"{base}{path}" for path in paths])
    assert [(each.name, each.num_images) for each in made.sets] == [
        ("train", 9),
        ("val", 2),
        ("test", 1),
    ]
    assert any(f"{base}{val}/" in note and "sets" in note for note in made.notes)
    for name, folder in (("train", train), ("val", val), ("test", test)):
        assert open_shards(tmp_path / "shards" / name).classes == ("ant", "bee", "cat")
        expected = {
            f"{base}{path}"[:-4]: path.split("/")[1]
            for path in paths
            if path.startswith(f"{folder}/")
        }
        assert labels_in(tmp_path / "shards" / name) == expected
        assert check_shards(str(tmp_path / "shards" / name), True, 1)[1] == []


def test_split_folders_may_hold_images_directly_or_one_more_level(tmp_path: Path):
    pack_paths(
        tmp_path / "flat", [f"{part}/{n}.jpg" for part in ("train", "val") for n in range(2)]
    )
    assert set(labels_in(tmp_path / "flat/shards/val").values()) == {""}
    kinds = [f"{part}/images/{kind}/0.jpg" for part in ("train", "val") for kind in ("a", "b")]
    made = pack_paths(tmp_path / "deep", kinds)
    assert set(labels_in(tmp_path / "deep/shards/val").values()) == {"a", "b"}
    assert any("images/" in note for note in made.notes)


def test_a_set_of_other_folders_beside_split_folders_is_refused(tmp_path: Path):
    paths = [f"{part}/{n}.jpg" for part in ("train", "val", "extra") for n in range(2)]
    with pytest.raises(UserError, match="there are images in extra/ beside them") as caught:
        pack_paths(tmp_path, paths)
    assert "--no-split-folders" in caught.value.remedy
    assert not (tmp_path / "shards").exists()
    made = pack_paths(tmp_path, paths, split_folders=False)
    assert made.sets[0].class_counts == {"extra": 2, "train": 2, "val": 2}


def test_a_class_that_is_called_train_stays_a_class(tmp_path: Path):
    made = pack_paths(
        tmp_path, [f"{kind}/{n}.jpg" for kind in ("bus", "car", "train") for n in "12"]
    )
    assert made.sets[0].class_counts == {"bus": 2, "car": 2, "train": 2}
    assert any("train/ is a class" in note for note in made.notes)


def test_a_fraction_splits_train_and_leaves_test_alone(tmp_path: Path):
    paths = [
        f"{part}/{kind}/{n}.jpg" for part in ("train", "test") for kind in "ab" for n in range(9)
    ]
    made = pack_paths(tmp_path, paths, val_fraction=0.4)
    train, val, test = made.sets
    assert (train.name, val.name, test.name) == ("train", "val", "test")
    assert train.num_images
    assert val.num_images
    assert train.num_images + val.num_images == 18
    assert all(key.startswith("test/") for key in labels_in(tmp_path / "shards/test"))
    with pytest.raises(UserError, match="--val-fraction is given") as caught:
        pack_paths(tmp_path / "both", [*paths, "valid/a/1.jpg"], val_fraction=0.4)
    assert "leave out --val-fraction" in caught.value.remedy


def test_a_wrapper_is_looked_through(tmp_path: Path):
    paths = [
        "download/set 1/cat/1.jpg",
        "download/set 1/cat/nested/2.jpg",
        "download/set 1/dog/1.jpg",
    ]
    made = pack_paths(tmp_path, [*paths, "stray.jpg", "download/readme.png"])
    assert labels_in(tmp_path / "shards") == {
        "download/set 1/cat/1": "cat",
        "download/set 1/cat/nested/2": "cat",
        "download/set 1/dog/1": "dog",
        "download/readme": "",
        "stray": "",
    }
    assert "classes from the folders in download/set 1/" in made.notes
    assert any(note.startswith("2 images beside the class folders") for note in made.notes)


def test_a_single_class_is_not_taken_for_a_wrapper(tmp_path: Path):
    one = pack_paths(tmp_path / "one", ["cat/1.jpg", "cat/2.jpg", "cat/nested/3.jpg"])
    assert one.sets[0].class_counts == {"cat": 3}
    most = ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "cat/old/1.jpg", "cat/new/2.jpg"]
    assert pack_paths(tmp_path / "most", most).sets[0].class_counts == {"cat": 5}


def test_one_stray_image_takes_no_label_from_the_others(tmp_path: Path):
    paths = [f"{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(3)]
    made = pack_paths(tmp_path, [*paths, "cover.png"])
    (only,) = made.sets
    assert (only.class_counts, only.num_images) == ({"cat": 3, "dog": 3}, 7)
    assert any("1 image beside the class folders" in note for note in made.notes)
    made = pack_paths(tmp_path / "sets", ["train/a/1.jpg", "val/a/1.jpg", "cover.png"])
    assert made.refused == {"in no set": 1}
    assert refused(tmp_path / "sets/shards") == {"cover.png": "in no set"}


def test_folders_without_images_are_no_classes_and_are_said(tmp_path: Path):
    fill(tmp_path / "images", ["cat/1.jpg", "dog/1.jpg"])
    (tmp_path / "images/emu/deep").mkdir(parents=True)
    (tmp_path / "images/fox").mkdir()
    (tmp_path / "images/fox/notes.txt").touch()
    done = ssl_vit("shards", "pack", tmp_path / "images", tmp_path / "shards", "--workers", "1")
    assert "2: cat 1, dog 1" in done.stdout
    assert "2 folders without images, so not classes: emu, fox" in done.stdout


def test_one_class_however_its_name_is_encoded(tmp_path: Path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    made = pack_paths(tmp_path, [f"{composed}/1.jpg", f"{decomposed}/2.jpg", "bar/1.jpg"])
    assert made.sets[0].class_counts == {"bar": 1, composed: 2}


def test_a_set_named_test_is_replaced_like_the_others(tmp_path: Path):
    paths = [f"{part}/a/{n}.jpg" for part in ("train", "test") for n in range(2)]
    pack_paths(tmp_path, paths)
    before = everything(tmp_path / "shards")
    with pytest.raises(UserError, match="already has a set"):
        pack_images(tmp_path / "images", tmp_path / "shards")
    assert everything(tmp_path / "shards") == before
    pack_images(
        tmp_path / "images", tmp_path / "shards", PackOptions(split_folders=False), overwrite=True
    )
    assert not list((tmp_path / "shards/test").glob("*"))
    assert (tmp_path / "shards/index.json").is_file()


def test_a_class_that_train_lacks_is_said(tmp_path: Path):
    made = pack_paths(
        tmp_path, ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/images/1.jpg"]
    )
    assert "1 class in val, not in train: images" in made.notes
