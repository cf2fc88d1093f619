"""Local shards that change after they were verified: what is noticed, when, and at what cost."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data import integrity
from ssl_vit.data.access_plan import SequentialAccess
from ssl_vit.data.integrity import Watch, verify
from ssl_vit.data.prefetcher import ShardPrefetcher, _Job, _Walk
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), per_class=60, shard_bytes=20_000)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    # copy: new times, as if it had just been put there
    return Path(shutil.copytree(written, tmp_path / "shards"))


def flip(path: Path) -> None:
    """In place, with the same size."""
    with path.open("r+b") as file:
        file.seek(700)
        byte = file.read(1)
        file.seek(700)
        file.write(bytes([byte[0] ^ 1]))


def flip_and_set_times_back(path: Path) -> None:
    """As `rsync --inplace --times` from a damaged copy."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_other(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.with_name("new").write_bytes(data)
    path.with_name("new").replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path) -> None:
    """In place, with what it has."""
    data = path.read_bytes()
    with path.open("r+b") as file:  # never shorter than it was
        file.write(data)


def replace_by_same(path: Path) -> None:
    shutil.copyfile(path, path.with_name("new"))
    path.with_name("new").replace(path)


HARMFUL = (flip, flip_and_set_times_back, replace_by_other, truncate)
HARMLESS = (rewrite, replace_by_same, Path.unlink, Path.touch, lambda path: path.chmod(0o600))


class Run:
    """A prefetcher's walk in a thread of this process, over a set in its order."""

    def __init__(self, shards: ShardSet) -> None:
        access_plan = SequentialAccess(shards.starts, np.arange(shards.num_samples))
        self.walk = _Walk(_Job(shards.shards, shards.cache, access_plan, 0, True, (0, 1)))
        self.error: UserError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.walk.run()
        except UserError as error:
            self.error = error

    def finish(self) -> UserError | None:
        self.walk.position = self.walk.goal = self.walk.job.access_plan.end
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.error


@contextmanager
def running(shards: ShardSet) -> Iterator[Run]:
    """The walk when it has verified all shards of the set, which is small."""
    run = Run(shards)
    try:
        wait_for(lambda: len(run.walk._ready) == len(shards.shards))
        yield run
    finally:
        run.finish()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_shard_in_use_that_changes_stops_the_run_within_a_look(
    folder: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(integrity, "LOOK_SECONDS", 0.1)
    shards = open_shards(folder)
    with running(shards) as run:
        harm(Path(shards.shards[0].url))
        wait_for(lambda: run.error is not None)
        assert run.walk.goal < 0  # long before the end
    assert run.error is not None
    assert run.error.problem.startswith(f"shard {shards.shards[0].url} is damaged: it was changed")
    assert "last checkpoint" in run.error.remedy


@pytest.mark.parametrize("harm", HARMFUL)
@pytest.mark.parametrize("looks", ["often", "never"])
def test_at_the_end_what_was_read_is_looked_at_once_more(
    folder: Path, harm: Callable[[Path], None], looks: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(integrity, "LOOK_SECONDS", 0.1 if looks == "often" else 1e6)
    shards = open_shards(folder)
    with running(shards) as run:
        harm(Path(shards.shards[1].url))
        error = run.finish()
    assert error is not None
    assert shards.shards[1].name in error.problem


@pytest.mark.parametrize("change", HARMLESS)
def test_a_shard_with_the_same_bytes_or_none_does_not_stop_the_run(
    folder: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(integrity, "LOOK_SECONDS", 0.1)
    shards = open_shards(folder)
    with running(shards) as run:
        change(Path(shards.shards[0].url))
        time.sleep(0.4)
        assert run.finish() is None


def test_a_shard_that_was_left_alone_is_hashed_once_and_looked_at_seldom(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(integrity, "LOOK_SECONDS", 0.3)
    shards = open_shards(folder)
    hashed, looked = [], []
    plain_hash, plain_stat = integrity.hashlib.file_digest, Path.stat

    def counted_hash(file, kind):
        hashed.append(file.name)
        return plain_hash(file, kind)

    def counted_stat(path: Path, **options: bool):
        looked.append(str(path))
        return plain_stat(path, **options)

    monkeypatch.setattr(integrity.hashlib, "file_digest", counted_hash)
    with running(shards) as run:
        began = time.monotonic()
        monkeypatch.setattr(Path, "stat", counted_stat)
        time.sleep(1.0)
        monkeypatch.setattr(Path, "stat", plain_stat)
        most = (time.monotonic() - began) / 0.3 + 1
        assert run.finish() is None
    assert len(hashed) == len(set(hashed)) == len(shards.shards)
    counts = [looked.count(shard.url) for shard in shards.shards]
    # In use are the first shard and the one after it.
    assert all(1 <= count <= most for count in counts[:2])
    assert not any(counts[2:])


def test_one_that_always_looks_changed_is_not_hashed_all_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Some network file systems give a file another inode number whenever it is asked for."""
    monkeypatch.setattr(integrity, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(integrity, "_REST", 200.0)
    shard = open_shards(folder).shards[0]
    plain = integrity.hashlib.file_digest

    def slow_hash(file, kind):
        time.sleep(0.003)
        return plain(file, kind)

    monkeypatch.setattr(integrity.hashlib, "file_digest", slow_hash)
    watch = Watch([shard])
    watch.use([0])
    watch.add(0, verify(shard))
    replace_by_same(Path(shard.url))
    assert watch.look([0]) == [0]
    watch.add(0, verify(shard, was_whole=True))
    replace_by_same(Path(shard.url))
    assert watch.look([]) == []  # it rests for 0.6 s or more
    assert watch.look_last() == [0]  # but not at the end
    wait_for(lambda: not watch._rests(0, time.monotonic()))
    assert watch.look([]) == [0]  # and is not forgotten, though out of use meanwhile
    assert watch.look([]) == []


def test_a_shard_that_is_rewritten_while_it_is_hashed_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shard = open_shards(folder).shards[0]
    plain = integrity.hashlib.file_digest

    def hash_and_write(file, kind):
        found = plain(file, kind)
        flip(Path(shard.url))
        return found

    monkeypatch.setattr(integrity.hashlib, "file_digest", hash_and_write)
    watch = Watch([shard])
    watch.use([0])
    watch.add(0, verify(shard))
    assert watch.look_last() == [0]


def test_a_deleted_shard_that_was_not_verified_yet_is_named(folder: Path):
    shards = open_shards(folder)
    Path(shards.shards[1].url).unlink()
    access_plan = SequentialAccess(shards.starts, np.arange(shards.num_samples))
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, access_plan)
    with pytest.raises(UserError, match=r"cannot read shard .*000001\.tar: No such file"):
        prefetcher.finish(access_plan.end)
    prefetcher.close()


def test_the_process_beside_a_rank_tells_of_a_change(folder: Path):
    shards = open_shards(folder)
    access_plan = SequentialAccess(shards.starts, np.arange(shards.num_samples))
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, access_plan)
    prefetcher.advance(0)
    time.sleep(1.5)  # for its start, and a hash of a few hundred kilobytes
    flip(Path(shards.shards[0].url))
    with pytest.raises(UserError, match=r"000000\.tar is damaged"):
        prefetcher.finish(access_plan.end)
    prefetcher.close()


@pytest.mark.parametrize("change", [Path.unlink, replace_by_same, replace_by_other])
def test_who_has_a_shard_open_reads_on_from_what_was_verified(
    folder: Path, change: Callable[[Path], None]
):
    shards = open_shards(folder)
    expected = [shards.read(number) for number in range(shards.num_samples)]
    reader = open_shards(folder)
    first, second = (int(number) for number in reader.starts[:2])
    assert reader.read(first) == expected[first]
    change(Path(reader.shards[0].url))
    assert reader.read(second) == expected[second]  # opens another, which lets evicted ones go
    assert reader.read(first + 1) == expected[first + 1]


def test_who_opens_a_deleted_shard_is_told_its_name(folder: Path):
    shards = open_shards(folder)
    Path(shards.shards[0].url).unlink()
    with pytest.raises(UserError, match="No such file") as caught:
        shards.read(0)
    assert shards.shards[0].url in caught.value.problem
    assert "restore it" in caught.value.remedy
