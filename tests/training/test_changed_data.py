"""What whole commands make of data that is not, or no longer, what its index says."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.sources import open_shards
from tests.command_line import ENVIRONMENT, PATIENCE, SMOKE, begin_ssl_vit, losses, ssl_vit
from tests.faulty_server import serving
from tests.synthetic import write_shards

UPDATES = 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), per_class=100, shard_bytes=20_000)


@pytest.fixture
def changed(shards: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(shards, tmp_path / "changed"))


def mistake(stderr: str) -> tuple[str, str]:
    """The two lines that a command ends with, and no traceback before them."""
    assert "Traceback" not in stderr
    wrong, fix = stderr.strip().splitlines()[-2:]
    assert wrong.startswith("error: ")
    assert fix.startswith("fix: ")
    return wrong, fix


# SET: the changed set, GOOD: the same as it was, RUN: a finished run, NEW: a place that is free.
COMMANDS = {
    "training": "pretrain mae_small_data --smoke --run NEW data.shards=SET",
    "training on several": "pretrain mae_small_data --smoke --run NEW data.shards=[GOOD,SET]",
    "online probes": "pretrain mae_vits16 --smoke --run NEW data.shards=GOOD monitor.labeled=SET",
    "k-NN, train": "eval knn RUN --train SET --test GOOD",
    "k-NN, test": "eval knn RUN --train GOOD --test SET",
    "linear probe": "eval linear RUN --train GOOD --test SET",
    "preview": "shards preview SET mae_small_data --out NEW",
    "reshard": "shards reshard SET NEW --num-shards 2",
}


def flip_labels(records: np.ndarray) -> None:
    records["label"] = 1 - records["label"]


def flip_offsets(records: np.ndarray) -> None:
    records["offset"] = records["offset"][::-1].copy()


@pytest.mark.parametrize(
    ("flip", "commands"),
    [(flip_labels, list(COMMANDS)), (flip_offsets, ["training", "k-NN, train", "preview"])],
)
def test_records_other_than_those_of_the_index_are_never_used(
    flip: Callable[[np.ndarray], None],
    commands: list[str],
    shards: Path,
    changed: Path,
    unbroken: Path,
    tmp_path: Path,
):
    records = np.load(changed / "samples.npy")
    flip(records)
    np.save(changed / "samples.npy", records)
    places = {"SET": changed, "GOOD": shards, "RUN": unbroken, "NEW": tmp_path / "new"}
    evaluated = sorted((unbroken / "evals").glob("*")) if (unbroken / "evals").is_dir() else []
    for name in commands:
        command = COMMANDS[name]
        for word, place in places.items():
            command = command.replace(word, str(place))
        done = ssl_vit(*command.split())
        assert done.returncode == 2, f"{name}: {done.stderr}"
        assert len(done.stderr.splitlines()) == 2, f"{name}: {done.stderr}"
        wrong, fix = mistake(done.stderr)
        assert f"{changed / 'samples.npy'} does not match its index.json" in wrong, name
        assert "restore samples.npy and index.json" in fix, name
        assert not (tmp_path / "new").exists(), name
    assert sorted((unbroken / "evals").glob("*")) == evaluated
    checked = ssl_vit("shards", "check", "--quick", changed)
    assert checked.returncode == 1
    assert checked.stdout.startswith("shard-000000.tar: ")


def flip_byte(folder: Path) -> None:
    """In place, in the image that is read first of all, and with the same size."""
    for path in sorted(folder.glob("*.tar"))[:1]:
        with path.open("r+b") as file:
            file.seek(700)
            byte = file.read(1)
            file.seek(700)
            file.write(bytes([byte[0] ^ 1]))


def copy_over(folder: Path) -> None:
    """As a restored backup."""
    for path in folder.glob("*.tar"):
        shutil.copyfile(path, path.with_name("new"))
        path.with_name("new").replace(path)


def delete(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        path.unlink()


def run_and_change(
    run: Path, changed: Path, change: Callable[[Path], None], *words: str
) -> subprocess.CompletedProcess[str]:
    """Train, and change the set after the first update."""
    process = begin_ssl_vit(*SMOKE, run, f"data.shards={changed}", *words)
    try:
        deadline = time.monotonic() + PATIENCE
        while not losses(run):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        change(changed)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, "", output)


# One shard after the other, so that most are opened long after the first update.
IN_ORDER = (f"schedule.length={UPDATES}", "data.lanes=1", "data.shuffle_block=1")


def test_a_run_whose_shard_is_written_to_stops_by_name(changed: Path, tmp_path: Path):
    done = run_and_change(tmp_path / "run", changed, flip_byte, *IN_ORDER)
    assert done.returncode == 2, done.stderr
    wrong, fix = mistake(done.stderr)
    assert wrong.startswith(f"error: shard {changed / 'shard-000000.tar'} is damaged")
    assert "restore it" in fix


def test_a_run_whose_shards_vanish_names_one_and_continues_when_they_are_back(
    shards: Path, changed: Path, tmp_path: Path
):
    done = run_and_change(tmp_path / "run", changed, delete, *IN_ORDER)
    assert done.returncode == 2, done.stderr
    wrong, fix = mistake(done.stderr)
    assert wrong.startswith(f"error: cannot read shard {changed / 'shard-0000'}")
    assert "No such file" in wrong
    assert "restore it and run the same command again" in fix
    shutil.rmtree(changed)
    shutil.copytree(shards, changed)
    again = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={changed}", *IN_ORDER)
    assert again.returncode == 0, again.stderr
    assert [step for step, _, _ in losses(tmp_path / "run")] == list(range(1, UPDATES + 1))


def test_a_run_whose_shards_are_replaced_by_the_same_ones_does_not_notice(
    changed: Path, unbroken: Path, tmp_path: Path
):
    done = run_and_change(tmp_path / "run", changed, copy_over)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(unbroken)


def test_a_cached_shard_that_rotted_between_two_runs_is_fetched_again(
    shards: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ENVIRONMENT, "SSL_VIT_CACHE", str(tmp_path / "cache"))
    entry = open_shards(shards).shards[0]
    with serving(shards) as server:
        kept = ShardCache(tmp_path / "cache")
        for shard in open_shards(server.url, kept).shards:
            copy = kept.path(shard)
            if shard.name == entry.name:
                data = bytearray(copy.read_bytes())
                data[700] ^= 1
                copy.write_bytes(data)
        done = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={server.url}")
        assert done.returncode == 0, done.stderr
        assert losses(tmp_path / "run") == losses(unbroken)
        again = {name: n for name, n in server.requests.items() if name.endswith(".tar") and n > 1}
        assert again == {entry.name: 2}
    said = [line for line in done.stderr.splitlines() if "fetching it again" in line]
    assert len(said) == 1
    assert f"{server.url}{entry.name}" in said[0]
