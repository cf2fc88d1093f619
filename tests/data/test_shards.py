"""Opening and reading shards, written here by the standard library and not by our packer."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import (
    SAMPLE_RECORD,
    Index,
    Statistics,
    describe_shard,
    read_index,
    records_digest,
    write_index,
)
from ssl_vit.data.shards import split_key
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError

CONTENTS = [b"first", b"s" * 1000, b"third", b"4", b"fifth"]
KEYS = ["a/one", "a/" + "two" * 50, "b/three", "b/four", "b/five"]
STATISTICS = Statistics((0.5, 0.25, 0.125), (0.1, 0.2, 0.3), 5)


def write_set(folder: Path) -> Path:
    """Five samples in two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, records = [], []
    labels = iter([0, 0, 1, 1, -1])
    for number, places in enumerate([(0, 1), (2, 3, 4)]):
        path = folder / f"shard-{number}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for place in places:
                info = tarfile.TarInfo(f"{KEYS[place]}.jpg")
                info.size = len(CONTENTS[place])
                tar.addfile(info, io.BytesIO(CONTENTS[place]))
        with tarfile.open(path) as tar:
            rows = [(m.offset_data, m.size, m.offset_data - m.offset, next(labels)) for m in tar]
        records.append(np.array(rows, dtype=SAMPLE_RECORD))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(describe_shard(path.name, path.stat().st_size, sha256, records[-1]))
    write_index(folder, Index(tuple(shards), ("a", "b"), STATISTICS), records)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path)


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_samples_are_read_by_number(folder: Path):
    shards = open_shards(folder)
    assert shards.num_samples == 5
    assert [shards.read(number) for number in range(5)] == CONTENTS
    assert [shards.key(number) for number in range(5)] == KEYS
    assert [shards.shard_of(number) for number in range(5)] == [0, 0, 1, 1, 1]
    assert [Path(shards.location_of(number)).name for number in (1, 2)] == [
        "shard-0.tar",
        "shard-1.tar",
    ]
    assert shards.labels.tolist() == [0, 0, 1, 1, -1]
    assert shards.classes == ("a", "b")


def test_a_set_goes_to_other_processes_by_pickle_and_by_fork(folder: Path):
    shards = open_shards(folder)
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert [copy.read(number) for number in range(5)] == CONTENTS
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, shards.read(4))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == CONTENTS[4]
    assert shards.read(3) == CONTENTS[3]
    os.close(reader)
    os.close(writer)


def test_shards_can_be_named_one_by_one(folder: Path):
    whole = open_shards(f"{folder}/shard-{{0..1}}.tar")
    assert whole.fingerprint == open_shards(folder).fingerprint
    second = open_shards(f"{folder}/shard-1.tar")
    assert [second.read(number) for number in range(3)] == CONTENTS[2:]
    assert [second.key(number) for number in range(3)] == KEYS[2:]
    assert second.labels.tolist() == [1, 1, -1]
    assert second.fingerprint != whole.fingerprint
    # In whichever order they are named, samples keep the index's.
    reverse = open_shards(f"{folder}/shard-{{1,0}}.tar")
    assert [reverse.read(number) for number in range(5)] == CONTENTS
    with pytest.raises(UserError, match=r"shard-2\.tar .* is not in the index") as caught:
        open_shards(f"{folder}/shard-{{0..2}}.tar")
    assert "shard-0.tar … shard-1.tar" in caught.value.remedy


def test_several_sets_are_one(folder: Path, tmp_path: Path):
    other = write_set(tmp_path / "other")
    both = open_shards([str(folder), f"{other}/shard-1.tar"])
    assert both.num_samples == 8
    assert [both.read(number) for number in range(8)] == CONTENTS + CONTENTS[2:]
    assert [both.key(number) for number in range(8)] == KEYS + KEYS[2:]
    assert both.labels.tolist() == [0, 0, 1, 1, -1, 1, 1, -1]
    assert both.classes == ("a", "b")
    assert [part.num_samples for part in both.parts] == [5, 3]
    change_index(other, lambda index: index.update(classes=["x", "y"]))
    assert open_shards([str(folder), str(other)]).classes == ()


def test_a_shard_elsewhere_is_named_by_its_url(folder: Path, tmp_path: Path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (folder / "shard-1.tar").rename(elsewhere / "shard-1.tar")
    url = (elsewhere / "shard-1.tar").as_uri()
    change_index(folder, lambda index: index["shardlist"][1].update(url=url))
    shards = open_shards(folder)
    assert [shards.read(number) for number in range(5)] == CONTENTS


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path):
    before = open_shards(folder).fingerprint
    assert open_shards(folder).fingerprint == before
    assert json.loads((folder / "index.json").read_text())["fingerprint"] == before
    assert len(before) == 16
    found = {before}
    for field, value in [("sha256", "7" * 64), ("records_sha256", "7" * 64)]:
        copy = write_set(tmp_path / field)
        change_index(copy, lambda index, f=field, v=value: index["shardlist"][1].update({f: v}))
        found.add(open_shards(copy, verifies_records=False).fingerprint)
    assert len(found) == 3


def test_the_index_is_a_list_of_shards_for_other_tools(folder: Path):
    index = json.loads((folder / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    assert [(e["url"], e["nsamples"]) for e in index["shardlist"]] == [
        ("shard-0.tar", 2),
        ("shard-1.tar", 3),
    ]
    for entry in index["shardlist"]:
        data = (folder / entry["url"]).read_bytes()
        assert entry["filesize"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert (index["num_samples"], index["num_bytes"]) == (
        5,
        sum(entry["filesize"] for entry in index["shardlist"]),
    )
    records = np.load(folder / "samples.npy")
    assert records.dtype == SAMPLE_RECORD
    assert index["shardlist"][1]["records_sha256"] == records_digest(records[2:])
    assert read_index(folder).statistics == STATISTICS


def change_shard(folder: Path, **values: object) -> None:
    change_index(folder, lambda index: index["shardlist"][1].update(values))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "index.json").unlink(), "have no index"),
        (lambda folder: (folder / "index.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "index.json").write_text("[" * 10**5), "not valid JSON"),
        (lambda folder: (folder / "index.json").write_text("[]"), "not a JSON object"),
        (
            lambda folder: change_index(folder, lambda i: i.update(format="1")),
            "does not have the format",
        ),
        (lambda folder: change_index(folder, lambda i: i.pop("shardlist")), "has no shardlist"),
        (lambda folder: change_index(folder, lambda i: i.update(classes=[[1]])), "classes"),
        (lambda folder: change_shard(folder, nsamples=10**30), "nsamples=10{20}"),
        (lambda folder: change_shard(folder, nsamples=2**41), "nsamples"),
        (lambda folder: change_shard(folder, filesize=float("inf")), "not valid JSON"),
        (lambda folder: change_shard(folder, url="a\0b"), "not in its folder"),
        (lambda folder: change_shard(folder, url="a\ud800"), "not valid JSON"),
        (lambda folder: change_index(folder, lambda i: i.update(shardlist=[])), "no samples"),
        (lambda folder: (folder / "shard-1.tar").unlink(), "shard-1.tar is missing"),
        (
            lambda folder: (folder / "shard-0.tar").write_bytes(b"short"),
            "shard-0.tar does not have the size",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "is empty"),
        (lambda folder: (folder / "samples.npy").unlink(), "cannot read"),
        (lambda folder: (folder / "samples.npy").write_bytes(b"junk"), "cannot read"),
        (lambda folder: (folder / "samples.npy").write_bytes(b""), "cannot read"),
        (lambda folder: (folder / "samples.npy").write_bytes(b"PK\3\4junk"), "cannot read"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros((), SAMPLE_RECORD)), "not match"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros(5)), "does not match"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros(4, SAMPLE_RECORD)), "not match"),
    ],
)
def test_a_damaged_set_is_a_users_error_of_two_lines(folder: Path, damage, problem: str):
    damage(folder)
    with pytest.raises(UserError, match=problem) as caught:
        open_shards(folder)
    assert "\n" not in caught.value.problem + caught.value.remedy
    assert str(folder) in caught.value.problem


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(UserError, match="ssl-vit shards pack"):
        open_shards(tmp_path / "missing")


def test_a_folder_of_sets_names_one_of_them(tmp_path: Path):
    write_set(tmp_path / "train")
    with pytest.raises(UserError, match="did you mean") as caught:
        open_shards(tmp_path)
    assert str(tmp_path / "train") in caught.value.remedy


@pytest.mark.parametrize("name", ["../shard-1.tar", "/etc/passwd", "a/b.tar"])
def test_an_index_cannot_lead_out_of_its_folder(name: str, folder: Path):
    change_index(folder, lambda index: index["shardlist"][1].update(url=name))
    with pytest.raises(UserError, match="not in its folder"):
        open_shards(folder)


def test_a_command_in_an_index_is_refused_unless_allowed(folder: Path, tmp_path: Path):
    shard = folder / "shard-1.tar"
    witness = tmp_path / "witness"
    command = f"pipe:touch {witness}; cat {shard}"
    change_index(folder, lambda index: index["shardlist"][1].update(url=command))
    with pytest.raises(UserError, match="run a shell command") as caught:
        open_shards(folder, ShardCache(tmp_path / "cache"))
    assert "data.allow_shell_urls=true" in caught.value.remedy
    allowed = open_shards(folder, ShardCache(tmp_path / "cache", allow_shell_urls=True))
    assert not witness.exists()
    assert [allowed.read(number) for number in range(5)] == CONTENTS
    assert witness.exists()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("ftp://host/shards/", "unsupported scheme, ftp:"),
        ("shard-{0..3.tar", "braces of .* do not match"),
        ("pipe:cat x.tar", "is a command"),
        ("{a,b}/shard-0.tar", "2 folders"),
    ],
)
def test_a_source_that_means_nothing_is_explained(source: str, problem: str):
    with pytest.raises(UserError, match=problem):
        open_shards(source)


@pytest.mark.parametrize(
    ("name", "key", "ending"),
    [
        ("a/b.jpg", "a/b", "jpg"),
        ("a.b/c.seg.PNG", "a.b/c", "seg.png"),
        ("x.cls", "x", "cls"),
        ("none", "none", ""),
    ],
)
def test_a_member_name_is_cut_as_webdataset_cuts_it(name: str, key: str, ending: str):
    assert split_key(name) == (key, ending)


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"sha256": "../../x"}, "sha256="), ({"nsamples": -1}, "nsamples=-1")],
)
def test_an_index_cannot_name_files_of_the_cache(
    change: dict[str, object], problem: str, folder: Path
):
    change_index(folder, lambda index: index["shardlist"][1].update(change))
    with pytest.raises(UserError, match=problem):
        open_shards(folder)
