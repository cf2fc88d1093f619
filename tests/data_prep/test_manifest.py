"""Manifests: whose columns are called otherwise, whose labels are numbers, lists or missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.sources import open_shards
from ssl_vit.data.subset import SubsetOfShards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.manifest import Columns
from ssl_vit_data_prep.pack import PackSummary, pack_images
from ssl_vit_data_prep.reshard import reshard
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.command_line import ssl_vit
from tests.data_prep.test_folders import labels_in
from tests.data_prep.test_pack import fill, webdataset_samples

FILES = [f"slides/{number}.png" for number in range(6)]


def write(kind: str, rows: list[dict[str, object]], tmp_path: Path) -> Path:
    """A manifest of some rows, as pandas would write it."""
    file = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        text = "\n".join(mark.join(line) for line in lines)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def pack_rows(
    rows: list[dict[str, object]],
    tmp_path: Path,
    columns: Columns | None = None,
    kind: str = "jsonl",
    val_fraction: float = 0.0,
    files: list[str] = FILES,
) -> PackSummary:
    fill(tmp_path / "images", files)
    options = PackOptions(
        classes="manifest",
        manifest=write(kind, rows, tmp_path),
        val_fraction=val_fraction,
        columns=columns or Columns(),
    )
    return pack_images(tmp_path / "images", tmp_path / "shards", options)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_columns_may_have_other_names_and_are_then_consumed(kind: str, tmp_path: Path):
    parts = ["train", "Training", "val", "validation", "test", "TESTING"]
    rows: list[dict[str, object]] = [
        {"file": path, "species": "ab"[n % 2], "part": parts[n], "year": str(1990 + n)}
        for n, path in enumerate(FILES)
    ]
    made = pack_rows(rows, tmp_path, Columns("file", "species", "part"), kind)
    assert [each.name for each in made.sets] == ["train", "val", "test"]
    for name, keys in (("train", "01"), ("val", "23"), ("test", "45")):
        folder = tmp_path / "shards" / name
        assert labels_in(folder) == {f"slides/{n}": "ab"[int(n) % 2] for n in keys}
        samples = webdataset_samples(folder)
        extras = {key: json.loads(sample["json"]) for key, sample in samples.items()}
        assert extras == {f"slides/{n}": {"year": str(1990 + int(n))} for n in keys}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("option", ["path", "label", "split", "group"])
def test_a_missing_column_lists_those_that_are_there(option: str, kind: str, tmp_path: Path):
    rows: list[dict[str, object]] = [{"path": path, "kind": "a", "site": "x"} for path in FILES]
    with pytest.raises(UserError, match="nope") as caught:
        pack_rows(rows, tmp_path, Columns(**{option: "nope"}), kind)
    assert "path, kind, site" in caught.value.problem
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("name", ["image", "file", "filename", "filepath", "image_path", "Path"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_paths_by_another_name_is_suggested(name: str, kind: str, tmp_path: Path):
    with pytest.raises(UserError, match="no column named path") as caught:
        pack_rows([{"width": 3, name: FILES[0], "label": "a"}], tmp_path, kind=kind)
    assert f"--path-column {name} " in f"{caught.value.remedy} "


def test_a_manifest_without_labels_says_which_columns_it_has(tmp_path: Path):
    fill(tmp_path / "images", FILES)
    file = write("csv", [{"path": path, "width": 3, "Species": "a"} for path in FILES], tmp_path)
    command = ("shards", "pack", tmp_path / "images", tmp_path / "shards", "--manifest", file)
    done = ssl_vit(*command)
    assert done.returncode == 0, done.stderr
    assert "the columns path, width, Species; --label-column Species" in done.stdout


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        ([10, 9, 100, 9, 10, 100], ("9", "10", "100"), [1, 0, 2, 0, 1, 2]),
        (["3.0", "nan", "12.0", "", "3.0", " 12.0 "], ("3", "12"), [0, -1, 1, -1, 0, 1]),
        ([3.0, None, 12.0, float("nan"), 3, 12], ("3", "12"), [0, -1, 1, -1, 0, 1]),
        (["007", "010", "9", "007", "-1", "-2"], ("-2", "007", "9", "010"), [1, 3, 2, 1, -1, 0]),
        ([0, 5, 1_000_000, -1, 5, 0], ("0", "5", "1000000"), [0, 1, 2, -1, 1, 0]),
        (["+2", "1", "2", "01", "1", "2"], ("1", "2"), [1, 0, 1, 0, 0, 1]),
        ([" a", "b ", "None", "none", "  ", "<NA>"], ("a", "b", "none"), [0, 1, -1, 2, -1, -1]),
        (["caf\u00e9", "cafe\u0301", "b", "b", "b", "b"], ("b", "caf\u00e9"), [1, 1, 0, 0, 0, 0]),
        ([True, False, True, None, True, True], ("false", "true"), [1, 0, 1, -1, 1, 1]),
    ],
)
def test_labels_are_numbered_by_what_they_mean(
    labels: list[object], classes: tuple[str, ...], found: list[int], tmp_path: Path
):
    rows: list[dict[str, object]] = [
        {"path": path, "label": label} for path, label in zip(FILES, labels, strict=True)
    ]
    made = pack_rows(rows, tmp_path)
    shards = open_shards(tmp_path / "shards")
    assert shards.classes == classes
    by_key = {shards.key(n): int(shards.labels[n]) for n in range(6)}
    assert [by_key[path[:-4]] for path in FILES] == found
    said = [note for note in made.notes if note.startswith("read as no label:")]
    assert bool(said) == (-1 in found)


@pytest.mark.parametrize("label", [["a"], {"a": 1}, "[1, 2]", "['a', 'b']", '{"a": 1}', "x" * 2000])
def test_a_label_that_is_a_list_is_refused_with_its_column(label: object, tmp_path: Path):
    rows: list[dict[str, object]] = [{"path": FILES[0], "tags": label}]
    with pytest.raises(UserError, match=r"list.jsonl, line 1, has .* in the column tags"):
        pack_rows(rows, tmp_path, Columns(label="tags"))


@pytest.mark.parametrize(("part", "said"), [("holdout", "has the split holdout"), ("", "no split")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_split_by_another_name_is_refused(part: str, said: str, kind: str, tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"path": FILES[0], "part": "train"},
        {"path": FILES[1], "part": part},
    ]
    with pytest.raises(UserError, match=said) as caught:
        pack_rows(rows, tmp_path, Columns(split="part"), kind)
    assert "train, val, test" in caught.value.problem


def test_groups_stay_together(tmp_path: Path):
    files = [f"{n}.png" for n in range(60)]
    rows: list[dict[str, object]] = [
        {"path": path, "label": "a", "patient": f"p{n % 15}"} for n, path in enumerate(files)
    ]
    rows[59]["patient"] = None
    made = pack_rows(rows, tmp_path, Columns(group="patient"), val_fraction=0.4, files=files)
    sides = {
        name: {int(key) % 15 for key in labels_in(tmp_path / "shards" / name) if key != "59"}
        for name in ("train", "val")
    }
    assert sides["train"]
    assert sides["val"]
    assert not sides["train"] & sides["val"]
    assert any("15 groups" in note and "1 image without one" in note for note in made.notes)


def test_the_index_keeps_groups_and_so_does_resharding(tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"path": path, "label": "a", "patient": None if n == 2 else f"p{n % 3}"}
        for n, path in enumerate(FILES)
    ]
    pack_rows(rows, tmp_path, Columns(group="patient"))
    reshard(str(tmp_path / "shards"), tmp_path / "new", 0, 2, seed=5, workers=1)
    for folder in ("shards", "new"):
        shards = open_shards(tmp_path / folder)
        assert shards.groups is not None
        found = {shards.key(n): int(shards.groups[n]) for n in range(6)}
        groups = [found[path[:-4]] for path in FILES]
        assert groups[0] == groups[3]
        assert groups[1] == groups[4]
        assert len(set(groups)) == 4  # an image without a group is alone
    kept = np.array([1, 2, 5])
    both = open_shards([str(tmp_path / "new"), str(tmp_path / "shards")])
    assert both.groups is not None
    assert not set(both.groups[:6]) & set(both.groups[6:])  # numbers of two indexes say nothing
    assert both.groups[:6].tolist() == shards.groups.tolist()
    assert np.array_equal(SubsetOfShards(both, kept).groups, both.groups[kept])


def test_sets_without_groups_have_none_and_a_wrong_number_of_them_is_refused(tmp_path: Path):
    rows: list[dict[str, object]] = [{"path": path, "label": "a"} for path in FILES]
    pack_rows(rows, tmp_path)
    assert open_shards(tmp_path / "shards").groups is None
    index = json.loads((tmp_path / "shards/index.json").read_text())
    (tmp_path / "shards/index.json").write_text(json.dumps(index | {"groups": "1,2,3"}))
    with pytest.raises(UserError, match="has groups of 3 samples, and lists 6"):
        open_shards(tmp_path / "shards")
    (tmp_path / "shards/index.json").write_text(json.dumps(index | {"groups": "1,,3"}))
    with pytest.raises(UserError, match="groups"):
        open_shards(tmp_path / "shards")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--label-column", "x"], "without --manifest"),
        (["--group-column", "x"], "without --manifest"),
    ],
)
def test_an_option_without_effect_is_refused(words: list[str], problem: str, tmp_path: Path):
    done = ssl_vit("shards", "pack", tmp_path, tmp_path / "shards", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)
    assert problem in done.stderr


def test_paths_of_windows_and_macos_are_matched(tmp_path: Path):
    composed, decomposed = "caf\u00e9/1.png", "cafe\u0301/2.png"
    files = ["a/b/1.png", composed, decomposed, "x.png"]
    listed = ["a\\b\\1.png", "cafe\u0301/1.png", "caf\u00e9\\2.png", "gone\\x.png"]
    rows: list[dict[str, object]] = [{"path": path, "label": "k"} for path in listed]
    made = pack_rows(rows, tmp_path, files=files)
    assert made.num_images == 3
    assert made.refused == {"only in the manifest": 1, "not in the manifest": 1}
    rows = [{"path": path, "label": "k"} for path in ("a/b/1.png", "a\\b\\1.png")]
    with pytest.raises(UserError, match=r"lists a/b/1\.png twice"):
        pack_rows(rows, tmp_path / "twice", files=files)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path):
    fill(tmp_path / "images", FILES)
    (tmp_path / "m.csv").write_text("path, label,label\nslides/0.png,a,b\n")
    options = PackOptions(classes="manifest", manifest=tmp_path / "m.csv")
    with pytest.raises(UserError, match="two columns named label"):
        pack_images(tmp_path / "images", tmp_path / "shards", options)
