"""Records are compared with the index before use: at once in small sets, else shard by shard."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data import records as records_module
from ssl_vit.data import shards as shards_module
from ssl_vit.data import sources as sources_module
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.labels import check_labels
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.check import check_shards
from tests.faulty_server import serving
from tests.synthetic import write_shards

NUM_SAMPLES = 48


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), shard_bytes=20_000)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "shards"))


def change(folder: Path, number: int, field: str, by: int = 1) -> None:
    """Change a field of one record in place, so that whoever has the file open sees it too."""
    file = folder / "samples.npy"
    mapped = np.load(file, mmap_mode="r+")
    assert len(mapped) == NUM_SAMPLES
    mapped[field][number] = int(mapped[field][number]) + by
    mapped.flush()


def make_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sets of this size be taken for large ones."""
    for module in (records_module, shards_module, sources_module):
        monkeypatch.setattr(module, "SMALL", 5)


def shard_of(folder: Path, number: int) -> str:
    """Name of the shard of a sample, by index.json alone."""
    for entry in json.loads((folder / "index.json").read_text())["shardlist"]:
        if number < entry["nsamples"]:
            return entry["url"]
        number -= entry["nsamples"]
    raise AssertionError


USES: dict[str, Callable[[ShardSet, int], object]] = {
    "read": lambda shards, number: shards.read(number),
    "key": lambda shards, number: shards.key(number),
    "record": lambda shards, number: shards.record(number),
    "labels": lambda shards, number: shards.labels,
    "check_labels": lambda shards, number: check_labels(shards, 10),
    "records_of": lambda shards, number: shards.records_of(shards.shard_of(number)),
}


@pytest.mark.parametrize("field", ["offset", "length", "lead", "label"])
@pytest.mark.parametrize("number", [0, 20, NUM_SAMPLES - 1])
def test_a_small_set_with_other_records_does_not_open(folder: Path, field: str, number: int):
    change(folder, number, field)
    with pytest.raises(UserError, match=r"does not match its index\.json") as caught:
        open_shards(folder)
    assert str(folder / "samples.npy") in caught.value.problem
    assert shard_of(folder, number) in caught.value.problem
    assert "\n" not in caught.value.problem + caught.value.remedy


def test_only_the_records_of_the_named_shards_count(folder: Path):
    change(folder, 0, "label")
    others = f"{folder}/shard-{{000001..000003}}.tar"
    assert len(open_shards(others).shards) == 3
    with pytest.raises(UserError, match=r"shard-000000\.tar"):
        open_shards([others, f"{folder}/shard-000000.tar"])


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("field", ["offset", "label"])
def test_of_a_large_set_records_are_compared_when_they_are_used(
    folder: Path, use: str, field: str, monkeypatch: pytest.MonkeyPatch
):
    number = 20
    change(folder, number, field)
    make_large(monkeypatch)
    shards = open_shards(folder, ShardCache(report=lambda line: None))
    assert shards.read(NUM_SAMPLES - 1)  # another shard's
    for _ in range(2):  # and are refused again, not only the first time
        with pytest.raises(UserError, match=shard_of(folder, number)):
            USES[use](shards, number)


def test_a_large_set_reads_what_a_small_one_reads(folder: Path, monkeypatch: pytest.MonkeyPatch):
    small = open_shards(folder)
    expected = [(small.record(n).item(), small.read(n), small.key(n)) for n in range(NUM_SAMPLES)]
    labels, said = small.labels.tolist(), []
    make_large(monkeypatch)
    large = open_shards(folder, ShardCache(report=said.append))
    found = [(large.record(n).item(), large.read(n), large.key(n)) for n in range(NUM_SAMPLES)]
    assert found == expected
    assert open_shards(folder, ShardCache(report=said.append)).labels.tolist() == labels
    assert said == [f"reading the labels of {NUM_SAMPLES:,} images …"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_data_worker_compares_what_it_uses(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
):
    make_large(monkeypatch)
    shards = open_shards(folder)
    shards.read(0)
    change(folder, 20, "offset")
    context, name = multiprocessing.get_context(method), shard_of(folder, 20)
    with context.Pool(1) as pool, pytest.raises(UserError, match=name):
        pool.apply(shards.read, (20,))


def test_small_records_that_change_in_a_run_are_those_that_were_compared(folder: Path):
    shards = open_shards(folder)
    before = shards.read(0)
    (folder / "samples.npy").write_bytes(b"")
    assert shards.read(0) == before
    assert len(shards.labels) == NUM_SAMPLES


def test_large_records_that_are_written_to_are_compared_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    make_large(monkeypatch)
    shards = open_shards(folder)
    before = shards.read(0)
    change(folder, 0, "offset")
    monkeypatch.setattr(records_module, "_LOOK_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"shard-000000\.tar"):
        shards.read(0)
    change(folder, 0, "offset", by=-1)
    assert shards.read(0) == before


def test_large_records_that_are_truncated_are_an_error_and_no_signal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    make_large(monkeypatch)
    shards = open_shards(folder)
    with (folder / "samples.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(UserError, match=r"samples\.npy was truncated while it was in use"):
        shards.read(NUM_SAMPLES - 1)


def test_large_records_that_are_replaced_do_not_matter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    make_large(monkeypatch)
    shards = open_shards(folder)
    before = shards.read(NUM_SAMPLES - 1)
    (folder / "new").write_bytes(b"another file")
    (folder / "new").replace(folder / "samples.npy")
    assert shards.read(NUM_SAMPLES - 1) == before


RECORD = records_module.SAMPLE_RECORD
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "other file": lambda file: file.write_bytes(b"PK\x03\x04 no numbers"),
    "half": lambda file: file.write_bytes(file.read_bytes()[:500]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "flipped header": lambda file: file.write_bytes(
        file.read_bytes().replace(b"{'descr", b"{,descr", 1)
    ),
    "scalar": lambda file: np.save(file, np.zeros((), RECORD)),
    "table": lambda file: np.save(file, np.zeros((NUM_SAMPLES, 1), RECORD)),
    "numbers": lambda file: np.save(file, np.zeros(NUM_SAMPLES)),
    "negative": lambda file: file.write_bytes(file.read_bytes().replace(b"(48,)", b"(-8,)", 1)),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_holds_no_such_records_is_a_users_error(
    folder: Path, damage: str, size: str, monkeypatch: pytest.MonkeyPatch
):
    if size == "large":
        make_large(monkeypatch)
    DAMAGES[damage](folder / "samples.npy")
    with pytest.raises(UserError, match=r"cannot read|does not match") as caught:
        open_shards(folder)
    assert str(folder / "samples.npy") in caught.value.problem
    assert "\n" not in caught.value.problem + caught.value.remedy


def test_check_opens_such_a_set_and_says_what_is_wrong_in_it(folder: Path):
    change(folder, 20, "label")
    change(folder, 40, "lead", by=8)
    faults = check_shards(str(folder), decode=False, workers=1).faults
    assert [fault.shard for fault in faults] == [shard_of(folder, 20), shard_of(folder, 40)]


@pytest.mark.parametrize("file", ["samples.npy", "index.json"])
def test_a_damaged_copy_of_a_remote_index_is_fetched_again(folder: Path, tmp_path: Path, file: str):
    said: list[str] = []
    cache = ShardCache(tmp_path / "cache", report=said.append)
    with serving(folder) as server:
        open_shards(server.url, cache)
        (copy,) = cache.indexes.iterdir()
        damaged = bytearray((copy / file).read_bytes())
        damaged[-3] ^= 1
        (copy / file).write_bytes(damaged)
        shards = open_shards(server.url, cache)
        assert server.requests["samples.npy"] == 2
        open_shards(server.url, cache)
        assert server.requests["samples.npy"] == 2
    assert shards.labels.tolist() == open_shards(folder).labels.tolist()
    assert len(said) == 1
    assert str(copy) in said[0]
    assert "fetching it again" in said[0]


def test_a_large_remote_set_says_what_to_remove(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_large(monkeypatch)
    cache = ShardCache(tmp_path / "cache")
    with serving(folder) as server:
        open_shards(server.url, cache)
        (copy,) = cache.indexes.iterdir()
        change(copy, 20, "label")
        with pytest.raises(UserError, match=shard_of(folder, 20)) as caught:
            open_shards(server.url, cache).read(20)
        assert caught.value.remedy.startswith(f"remove {copy},")
