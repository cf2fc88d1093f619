"""What is in others' tars beside whole samples, and where their labels are. Oracles: the members
that the test wrote, and stock webdataset.
"""

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ssl_vit.data.shards import is_in_sample, split_key
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.class_names import read_class_names
from ssl_vit_data_prep.index import IndexOptions, IndexSummary, index_shards
from ssl_vit_data_prep.reports import echo_refused
from ssl_vit_data_prep.reshard import reshard
from tests.command_line import ssl_vit
from tests.data_prep.test_folders import labels_in
from tests.data_prep.test_foreign_shards import webdataset_by_key
from tests.data_prep.test_pack import picture, refused

Members = Sequence[tuple[str, bytes | tarfile.TarInfo]]


def write_tar(path: Path, members: Members) -> Path:
    """A tar of files in this order; a TarInfo is a member without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.name, info.size = name, len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def labeled(labels: Sequence[str], ending: str = "cls") -> list[tuple[str, bytes]]:
    members = []
    for number, label in enumerate(labels):
        members += [(f"{number:03d}.jpg", picture(number, "jpg"))]
        members += [(f"{number:03d}.{ending}", label.encode())]
    return members


def index(source: Path | str, overwrite: bool = False, **options: object) -> IndexSummary:
    chosen = IndexOptions(**options)  # type: ignore[arg-type] - the test's own
    return index_shards([str(source)], None, chosen, 1, overwrite)


NAMES = [
    "a.jpg",
    "./._a.jpg",
    "._b.jpg",
    ".DS_Store",
    "c/d.e.JPG",
    "c.d/e.jpg",
    "f/__g__/h.jpg",
    "__MACOSX/._x.jpg",
    "__meta__",
    "__k__/l.jpg",
    "__m__.jpg",
    "README",
    "n/README",
    "o..jpg",
    "p\nq.jpg",
]


def test_members_are_taken_as_webdataset_takes_them(tmp_path: Path):
    """But for hidden files in folders, of which it makes samples called like the folder."""
    tar = write_tar(tmp_path / "x.tar", [(name, picture(n, "jpg")) for n, name in enumerate(NAMES)])
    expected = {
        sample["__key__"]
        for sample in webdataset.WebDataset([str(tar)], shardshuffle=False)
        if not any(ending.startswith("_") for ending in sample if not ending.startswith("__"))
    }
    assert {split_key(name)[0] for name in NAMES if is_in_sample(name)} == expected
    made = index(tmp_path)
    assert set(labels_in(tmp_path)) == expected
    assert made.refused == {"metadata": 2, "hidden": 4, "no image ending": 2}
    assert refused(tmp_path)["x.tar/.DS_Store"] == "hidden"


def test_what_is_no_file_is_counted_and_hard_links_are_files(tmp_path: Path):
    data = [picture(n, "jpg") for n in range(2)]
    write_tar(
        tmp_path / "x.tar",
        [
            ("0.jpg", data[0]),
            ("0.cls", b"5"),
            ("1.jpg", special(tarfile.LNKTYPE, "0.jpg")),
            ("1.cls", special(tarfile.LNKTYPE, "0.cls")),
            ("2.jpg", special(tarfile.LNKTYPE, "1.jpg")),
            ("2.cls", b"6"),
            ("3.jpg", special(tarfile.LNKTYPE, "gone.jpg")),
            ("4.jpg", special(tarfile.SYMTYPE, "0.jpg")),
            ("5.jpg", special(tarfile.FIFOTYPE)),
            ("6", special(tarfile.DIRTYPE)),
            ("7.tar", b"x"),
            ("8.jpg", data[1]),
        ],
    )
    made = index(tmp_path)
    expected = {"broken link": 1, "symbolic link": 1, "special file": 1, "inner archive": 1}
    assert made.refused == expected
    assert refused(tmp_path)["x.tar/3.jpg"] == "broken link"
    shards = open_shards(tmp_path)
    assert labels_in(tmp_path) == {"0": "5", "1": "5", "2": "6", "8": ""}
    read = {shards.key(number): shards.read(number) for number in range(4)}
    assert read == {"0": data[0], "1": data[0], "2": data[0], "8": data[1]}
    assert check_shards(str(tmp_path), decode=True, workers=1)[1] == []
    reshard(str(tmp_path), tmp_path / "new", 0, 1, seed=0, workers=1)
    assert labels_in(tmp_path / "new") == labels_in(tmp_path)
    samples = webdataset_by_key(tmp_path / "new")
    assert {key: samples[key]["jpg"] for key in read} == read
    assert samples["1"]["cls"] == b"5"


def test_check_tells_hard_links_from_their_files(tmp_path: Path):
    link = special(tarfile.LNKTYPE, "0.jpg")
    write_tar(tmp_path / "x.tar", [("0.jpg", picture(0, "jpg")), ("0.cls", b"a"), ("1.jpg", link)])
    index(tmp_path)
    records = np.load(tmp_path / "samples.npy")
    records["label"] = [-1, 0]
    np.save(tmp_path / "samples.npy", records)
    faults = check_shards(str(tmp_path), decode=False, workers=1)[1]
    assert [fault.key for fault in faults] == ["0"]


@pytest.mark.parametrize("order", ["by ending", "label first", "one late"])
def test_an_unsorted_tar_is_refused_by_all_that_read_it(order: str, tmp_path: Path):
    members = labeled(["0", "1", "2"])
    if order == "by ending":
        members.sort(key=lambda member: member[0].endswith("cls"))
    elif order == "label first":
        members.sort(key=lambda member: member[0].endswith("jpg"))
    else:
        members.append(members.pop(1))
    tar = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=r"x\.tar: not sorted: 00") as caught:
        index(tmp_path)
    assert "tar --sort=name -cf" in caught.value.remedy
    (tmp_path / "files").mkdir()
    subprocess.run(["tar", "xf", tar, "-C", tmp_path / "files"], check=True)
    again = ["tar", "--sort=name", "-cf", tar, "-C", tmp_path / "files", "."]
    subprocess.run(again, check=True)
    index(tmp_path)
    assert labels_in(tmp_path) == {f"./00{n}": str(n) for n in range(3)}


def test_a_repeated_name_counts_and_is_counted(tmp_path: Path):
    members = labeled(["a", "b"])
    write_tar(tmp_path / "x.tar", [*members, *members[:2]])
    done = ssl_vit("shards", "index", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images in 1 shard" in done.stdout
    assert "2 files with the same name as an earlier one" in done.stdout
    reshard(str(tmp_path), tmp_path / "new", 0, 1, seed=0, workers=1)
    assert sorted(labels_in(tmp_path / "new").values()) == ["a", "a", "b"]


def test_bytes_behind_the_end_mark_are_counted(tmp_path: Path):
    first = write_tar(tmp_path / "a/x.tar", labeled(["0"])).read_bytes()
    second = write_tar(tmp_path / "b/x.tar", labeled(["1"])).read_bytes()
    for content, kinds in ((first + second, {"behind the end mark": 1}), (first + bytes(9999), {})):
        (tmp_path / "a/x.tar").write_bytes(content)
        made = index(tmp_path / "a", overwrite=True)
        assert made.refused == kinds
        assert made.index.num_samples == 1


def test_a_size_beyond_the_end_is_said_at_once(tmp_path: Path):
    tar = write_tar(tmp_path / "x.tar", labeled(["0"]))
    info = tarfile.TarInfo("huge.jpg")
    info.size = 2**50
    tar.write_bytes(tar.read_bytes()[:-10240] + info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match=r"truncated inside huge\.jpg"):
        index(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        (["5", "0", "1000000", "5"], ("0", "5", "1000000"), [1, 0, 2, 1]),
        (["-1", "10", "9", " \n"], ("9", "10"), [-1, 1, 0, -1]),
        (["007", "3.0", "+11", "-2"], ("-2", "3", "007", "+11"), [2, 1, 3, 0]),
        ([" wolf\n", "cat", "nan", ""], ("cat", "wolf"), [1, 0, -1, -1]),
    ],
)
def test_labels_in_tars_are_numbered_by_what_they_mean(
    labels: list[str], classes: tuple[str, ...], found: list[int], tmp_path: Path
):
    write_tar(tmp_path / "x.tar", labeled(labels))
    made = index(tmp_path)
    shards = open_shards(tmp_path)
    assert shards.classes == classes
    assert shards.labels.tolist() == found
    assert sum(made.saw["missing"].values()) == found.count(-1)
    assert check_shards(str(tmp_path), decode=False, workers=1)[1] == []


def test_labels_of_folders_tars_and_nested_fields(tmp_path: Path):
    kinds = ("ant", "bee")
    for kind in kinds:
        members: list[tuple[str, bytes]] = []
        for number in range(2):
            fields = {"meta": {"class": {"id": kind.upper()}}, "width": 3}
            members.append((f"./data/{kind}/{number}.jpg", picture(number, "jpg")))
            members.append((f"./data/{kind}/{number}.json", json.dumps(fields).encode()))
        write_tar(tmp_path / f"tars/n0_{kind}s.tar", members)
    for words, names in (
        (["--labels", "folder"], ("ant", "bee")),
        (["--labels", "tar"], ("n0_ants", "n0_bees")),
        (["--label-field", "meta.class.id"], ("ANT", "BEE")),
    ):
        out = tmp_path / words[-1]
        done = ssl_vit("shards", "index", tmp_path / "tars", "--out", out, *words)
        assert done.returncode == 0, done.stderr
        assert f"4 images of 2 classes: {names[0]}, {names[1]}" in done.stdout
        assert open_shards(out).classes == names
        assert open_shards(out).labels.tolist() == [0, 0, 1, 1]
        assert check_shards(str(out), decode=False, workers=1)[1] == []
        reshard(str(out), tmp_path / f"{words[-1]} again", 0, 1, seed=0, workers=1)
        assert check_shards(str(tmp_path / f"{words[-1]} again"), False, 1)[1] == []
    done = ssl_vit("shards", "index", tmp_path / "tars", "--out", tmp_path / "none")
    assert (
        "none: json has the fields meta.class.id, width; use --label-field meta.class.id"
        in done.stdout
    )
    assert "images are in 2 folders: ant, bee; use --labels folder" in done.stdout
    assert "tars are named n0_ants, n0_bees; use --labels tar" in done.stdout


def test_numbered_tars_are_not_suggested_as_classes(tmp_path: Path):
    for number in range(3):
        write_tar(tmp_path / f"shard-{number:06d}.tar", [("a.jpg", picture(number, "jpg"))])
    assert index(tmp_path).hints == ()


def test_sets_in_a_tar_are_not_taken_for_classes(tmp_path: Path):
    paths = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg")
    write_tar(tmp_path / "x.tar", [(path, picture(1, "jpg")) for path in paths])
    with pytest.raises(UserError, match="train, val in the tars are sets"):
        index(tmp_path, labels="folder")
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_a_list_in_a_field_is_refused_by_its_name(value: object, tmp_path: Path):
    write_tar(tmp_path / "x.tar", labeled([json.dumps({"tags": value})], "json"))
    with pytest.raises(UserError, match=r"the field tags of 000\.json has a (list|mapping)"):
        index(tmp_path, label_field="tags")


def test_labels_that_cannot_be_read_are_counted(tmp_path: Path):
    members = labeled(["a", "b"])
    members[1] = ("000.cls", b"\xff\xfe")
    write_tar(tmp_path / "x.tar", members)
    assert index(tmp_path).refused == {"unreadable label": 1}
    write_tar(tmp_path / "y/x.tar", labeled(['{"l": "a"}', "[" * 100_000], "json"))
    assert index(tmp_path / "y", label_field="l").refused == {"unreadable label": 1}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--labels", "folder", "--label-field", "x"], "two places of labels"),
        (["--labels", "json"], "needs the field"),
    ],
)
def test_options_of_labels_that_contradict_each_other(
    words: list[str], problem: str, tmp_path: Path
):
    done = ssl_vit("shards", "index", tmp_path, *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)
    assert problem in done.stderr


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", ("cat", "dog")),
        ("cafe\u0301 \n b".encode(), ("caf\u00e9", "b")),
    ],
)
def test_a_file_of_classes_is_read_as_editors_write_it(
    content: bytes, names: tuple[str, ...], tmp_path: Path
):
    (tmp_path / "classes.txt").write_bytes(content)
    assert read_class_names(tmp_path / "classes.txt") == names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cat\n\ndog\n", "line 2, is blank"),
        ("\ncat\n", "line 1, is blank"),
        ("cat\ndog\ncat\n", "names cat twice, in lines 1 and 3"),
        ("\n", "has no class names"),
    ],
)
def test_a_file_of_classes_whose_lines_mean_no_number_is_refused(
    text: str, problem: str, tmp_path: Path
):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_class_names(tmp_path / "classes.txt")


def test_numbers_are_lines_of_the_file_of_classes(tmp_path: Path):
    write_tar(tmp_path / "x.tar", labeled(["02", "0", "elk", "-1", "2.0"]))
    made = index(tmp_path, classes=("ant", "elk", "cat"))
    assert made.index.classes == ("ant", "elk", "cat")
    assert open_shards(tmp_path).labels.tolist() == [2, 0, 1, -1, 2]
    write_tar(tmp_path / "y/x.tar", labeled(["1", "0", "2"]))
    index(tmp_path / "y", classes=("2", "0", "1"))  # all are names
    assert open_shards(tmp_path / "y").labels.tolist() == [2, 1, 0]
    with pytest.raises(UserError, match="label 1 is the name of class 0 and the number of class 1"):
        index(tmp_path / "y", overwrite=True, classes=("1", "5", "7"))


def test_names_cannot_move_under_the_labels_of_an_index(tmp_path: Path):
    write_tar(tmp_path / "x.tar", labeled(["0", "1"]))
    index(tmp_path)
    index(tmp_path, overwrite=True, classes=("cat", "dog"))  # numbers get names
    before = (tmp_path / "index.json").read_bytes()
    for names in (("dog", "cat"), ()):
        with pytest.raises(UserError, match="class 0 is cat") as caught:
            index(tmp_path, overwrite=True, classes=names)
        assert "--out" in caught.value.remedy
        assert (tmp_path / "index.json").read_bytes() == before
        assert not (tmp_path / ".unfinished").exists()
    index(tmp_path, overwrite=True, classes=("cat", "dog", "elk"))
    assert open_shards(tmp_path).classes == ("cat", "dog", "elk")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_tars_in_a_folder_are_named(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"only compressed tars, such as {name}") as caught:
        index(tmp_path)
    assert "decompress them first" in caught.value.remedy
    write_tar(tmp_path / "b.tar", labeled(["a"]))
    assert index(tmp_path).refused == {"compressed": 1}


def test_a_tar_of_tars_is_named(tmp_path: Path):
    inner = write_tar(tmp_path / "inner.tar", labeled(["a"])).read_bytes()
    write_tar(tmp_path / "outer/x.tar", [("n01440764.tar", inner), ("n01443537.tar", inner)])
    with pytest.raises(UserError, match=r"hold archives .*n01440764\.tar"):
        index(tmp_path / "outer")


def test_tars_that_were_joined_by_cat_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    echo_refused({"behind the end mark": 1}, tmp_path)
    assert "WARNING  1 tar with data after the end mark" in capsys.readouterr().out
