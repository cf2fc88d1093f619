"""Reading a set of shards. The tars here are written by the standard library, not by our packer."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.shards import SAMPLE_RECORD, Shard, ShardSet, split_key, write_index
from ssl_vit.errors import UserError

CONTENTS = [b"first", b"s" * 1000, b"third", b"4", b"fifth"]
KEYS = ["a/one", "a/" + "two" * 50, "b/three", "b/four", "b/five"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five samples in two shards."""
    shards, records = [], []
    for number, places in enumerate([(0, 1), (2, 3, 4)]):
        path = tmp_path / f"shard-{number}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for place in places:
                info = tarfile.TarInfo(f"{KEYS[place]}.jpg")
                info.size = len(CONTENTS[place])
                tar.addfile(info, io.BytesIO(CONTENTS[place]))
        with tarfile.open(path) as tar:
            records += [(m.offset_data, m.size, m.offset_data - m.offset, 0) for m in tar]
        shards.append(Shard(path.name, len(places), path.stat().st_size, f"{number}" * 64))
    records = np.array(records, dtype=SAMPLE_RECORD)
    records["label"] = [0, 0, 1, 1, -1]
    write_index(tmp_path, shards, records, ["a", "b"])
    return tmp_path


def test_samples_are_read_by_number(folder: Path):
    shards = ShardSet.open(folder)
    assert shards.num_samples == 5
    assert [shards.read(number) for number in range(5)] == CONTENTS
    assert [shards.key(number) for number in range(5)] == KEYS
    assert [shards.shard_of(number) for number in range(5)] == [0, 0, 1, 1, 1]
    assert shards.labels.tolist() == [0, 0, 1, 1, -1]
    assert shards.classes == ("a", "b")


def test_a_set_goes_to_other_processes_by_pickle_and_by_fork(folder: Path):
    shards = ShardSet.open(folder)
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


def test_the_fingerprint_follows_the_content(folder: Path):
    before = ShardSet.open(folder).fingerprint
    assert ShardSet.open(folder).fingerprint == before
    index = json.loads((folder / "index.json").read_text())
    index["shardlist"][1]["sha256"] = "7" * 64
    (folder / "index.json").write_text(json.dumps(index))
    assert ShardSet.open(folder).fingerprint != before
    assert len(before) == 16


def test_the_index_is_a_list_of_shards_for_other_tools(folder: Path):
    index = json.loads((folder / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    assert [(e["url"], e["nsamples"]) for e in index["shardlist"]] == [
        ("shard-0.tar", 2),
        ("shard-1.tar", 3),
    ]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "index.json").unlink(), "has no index.json"),
        (lambda folder: (folder / "index.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "index.json").write_text("[]"), "not of the format"),
        (lambda folder: (folder / "shard-1.tar").unlink(), "shard-1.tar is missing"),
        (lambda folder: (folder / "shard-0.tar").write_bytes(b"short"), "shard-0.tar has another"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "is empty"),
        (lambda folder: (folder / "samples.npy").unlink(), "cannot read"),
        (lambda folder: (folder / "samples.npy").write_bytes(b"junk"), "cannot read"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros(5)), "does not fit"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros(4, SAMPLE_RECORD)), "not fit"),
    ],
)
def test_a_damaged_set_is_a_users_error_of_two_lines(folder: Path, damage, problem: str):
    damage(folder)
    with pytest.raises(UserError, match=problem) as caught:
        assert ShardSet.open(folder).records is not None
    assert "\n" not in caught.value.problem + caught.value.remedy
    assert str(folder) in caught.value.problem


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(UserError, match="ssl-vit shards pack"):
        ShardSet.open(tmp_path / "missing")


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
