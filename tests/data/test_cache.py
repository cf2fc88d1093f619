"""The cache of remote shards: one download for all, bounded, verified, safe against kills."""

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import pytest

from ssl_vit.data import cache as cache_module
from ssl_vit.data import fetch
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import Shard
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from tests.command_line import PATIENCE
from tests.faulty_server import FaultyServer, serving
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), per_class=60, shard_bytes=20_000)


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with serving(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(cache_module, "_READER_PATIENCE", 0.3)


def remote_shards(server: FaultyServer, cache: ShardCache) -> list[Shard]:
    return list(open_shards(server.url, cache).shards)


def names(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.shards.iterdir()}


def test_a_shard_is_fetched_once_and_is_the_servers(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path)
    shards = remote_shards(server, cache)
    assert not any(server.requests[shard.name] for shard in shards)
    for shard in [*shards, *shards]:
        assert cache.path(shard).read_bytes() == (server.folder / shard.name).read_bytes()
    assert {server.requests[shard.name] for shard in shards} == {1}
    assert names(cache) == {f"{shard.sha256}.tar" for shard in shards}


def test_a_local_shard_stays_where_it_is(folder: Path, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache")
    for shard in open_shards(folder, cache).shards:
        assert cache.path(shard) == folder / shard.name
    assert not (tmp_path / "cache").exists()


def fetch_in_process(server_url: str, cache: Path) -> subprocess.Popen[str]:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from ssl_vit.data.cache import ShardCache\n"
        "from ssl_vit.data.sources import open_shards\n"
        "cache = ShardCache(Path(sys.argv[2]))\n"
        "shards = open_shards(sys.argv[1], cache)\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "for n in range(shards.num_samples): shards.read(n)\n"
        "print(len(shards.shards))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, server_url, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_one_download_a_shard(server: FaultyServer, tmp_path: Path):
    processes = [fetch_in_process(server.url, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=PATIENCE)[0] for process in processes]
    count = len(open_shards(server.folder).shards)
    assert outputs == [f"{count}\n"] * 2
    tars = {name: n for name, n in server.requests.items() if name.endswith(".tar")}
    assert len(tars) == count
    assert set(tars.values()) == {1}
    assert server.requests["samples.npy"] == 1


def test_threads_that_want_the_same_shard_wait_for_one_download(folder: Path, tmp_path: Path):
    with serving(folder, ["hang"]) as server:  # the first answer takes three seconds and breaks
        cache = ShardCache(tmp_path, report=lambda line: None)
        shard = remote_shards(server, cache)[0]
        threads = [threading.Thread(target=cache.path, args=(shard,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.requests[shard.name] == 2
    assert cache.path(shard).read_bytes() == (folder / shard.name).read_bytes()


def test_the_cache_never_takes_more_room_than_it_may(server: FaultyServer, tmp_path: Path):
    largest = max(shard.num_bytes for shard in open_shards(server.folder).shards)
    cache = ShardCache(tmp_path, num_bytes=3 * largest)
    shards = remote_shards(server, cache)
    assert len(shards) > 4
    for shard in shards:
        cache.path(shard)
        used = sum(path.stat().st_size for path in cache.shards.iterdir())
        assert used <= 3 * largest
    # What was used last is still here, what was used first is not.
    assert cache.place_of(shards[-1]).exists()
    assert not cache.place_of(shards[0]).exists()


def test_what_is_held_stays_and_what_is_retired_goes_first(server: FaultyServer, tmp_path: Path):
    largest = max(shard.num_bytes for shard in open_shards(server.folder).shards)
    cache = ShardCache(tmp_path, num_bytes=3 * largest)
    first, second, third, fourth, fifth, *_ = remote_shards(server, cache)
    for shard in (first, second, third):
        cache.path(shard)
    held = cache.hold(first)
    assert held is not None
    cache.retire(third)
    cache.path(fourth)
    assert [cache.place_of(s).exists() for s in (first, second, third)] == [True, True, False]
    held.close()
    os.utime(cache.place_of(first), (1, 1))
    cache.path(fifth)
    assert not cache.place_of(first).exists()
    assert cache.hold(first) is None


def test_a_fetch_ahead_waits_for_room_and_a_reader_only_for_a_moment(
    server: FaultyServer, tmp_path: Path
):
    largest = max(shard.num_bytes for shard in open_shards(server.folder).shards)
    cache = ShardCache(tmp_path, num_bytes=2 * largest)
    first, second, third, fourth, *_ = remote_shards(server, cache)
    held = [cache.path(shard) and cache.hold(shard) for shard in (first, second)]
    waiting = threading.Thread(target=cache.fetch, args=(third,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert cache.path(fourth).exists()  # what a data worker needs now may not stop the run
    for file in held:
        assert file is not None
        file.close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert cache.place_of(third).exists()


def test_a_fetch_that_waits_for_room_does_not_keep_a_reader_from_the_same_shard(
    server: FaultyServer, tmp_path: Path
):
    largest = max(shard.num_bytes for shard in open_shards(server.folder).shards)
    cache = ShardCache(tmp_path, num_bytes=2 * largest)
    first, second, third, *_ = remote_shards(server, cache)
    held = [cache.path(shard) and cache.hold(shard) for shard in (first, second)]
    ahead = threading.Thread(target=cache.fetch, args=(third,), daemon=True)
    reader = threading.Thread(target=cache.path, args=(third,), daemon=True)
    ahead.start()
    ahead.join(0.3)
    reader.start()
    reader.join(10)
    ahead.join(10)
    assert not reader.is_alive()
    assert not ahead.is_alive()
    assert server.requests[third.name] == 1
    assert all(held)


def test_a_shard_larger_than_the_cache_is_refused(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path, num_bytes=1000)
    with pytest.raises(UserError, match="more than the whole cache") as caught:
        cache.path(remote_shards(server, cache)[0])
    assert "1,000" in caught.value.problem
    assert "engine.cache_bytes=" in caught.value.remedy


def test_a_killed_download_leaves_nothing_that_counts(folder: Path, tmp_path: Path):
    with serving(folder, ["hang"]) as server:
        process = fetch_in_process(server.url, tmp_path)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        cache = ShardCache(tmp_path)
        deadline = time.monotonic() + PATIENCE
        while not list(cache.shards.glob("*.partial")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (left,) = cache.shards.glob("*.partial")
        shards = remote_shards(server, cache)
        # The half-written file goes as soon as room is needed.
        small = ShardCache(tmp_path, num_bytes=max(shard.num_bytes for shard in shards))
        small.path(shards[-1])
        assert not left.exists()
        for shard in shards:
            assert cache.path(shard).read_bytes() == (folder / shard.name).read_bytes()


def test_those_who_wait_for_a_download_that_fails_are_told_and_do_not_try_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    try_lock, waiting = cache_module._try_lock, set[int]()

    def noted(file: IO[Any]) -> bool:
        locked = try_lock(file)
        if not locked:
            waiting.add(threading.get_ident())
        return locked

    monkeypatch.setattr(cache_module, "_try_lock", noted)
    with serving(folder, ["500"] * 3) as server:
        cache = ShardCache(tmp_path, attempts=3, report=lambda line: None)
        shard = remote_shards(server, cache)[0]
        problems: list[str] = []

        def read() -> None:
            try:
                cache.path(shard)
            except UserError as error:
                problems.append(error.problem)

        # Two ask while a third holds the lock; one of them fails, the other hears of it.
        cache.shards.mkdir(parents=True, exist_ok=True)
        with (cache.shards / f"{shard.sha256}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            threads = [threading.Thread(target=read) for _ in range(2)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + PATIENCE
            while len(waiting) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert len(problems) == 2
        assert problems[0] == problems[1]
        assert "answered 500" in problems[0]
        assert server.requests[shard.name] == 3
        # Whoever asks later tries for himself.
        assert cache.path(shard).read_bytes() == (folder / shard.name).read_bytes()


def test_who_waits_for_a_download_does_not_wait_for_those_who_hold_what_came_of_it(
    server: FaultyServer, tmp_path: Path
):
    cache = ShardCache(tmp_path)
    shard = remote_shards(server, cache)[0]
    cache.shards.mkdir(parents=True)
    waiting = threading.Thread(target=cache.path, args=(shard,), daemon=True)
    with (cache.shards / f"{shard.sha256}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        time.sleep(0.2)
        cache.place_of(shard).write_bytes((server.folder / shard.name).read_bytes())
        held = cache.hold(shard)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert held is not None
    assert server.requests[shard.name] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, to make a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_disk_that_is_full_old_shards_make_room(
    server: FaultyServer, small_disk: Path, tmp_path: Path
):
    cache = ShardCache(small_disk)
    shards = remote_shards(server, cache)
    assert sum(shard.num_bytes for shard in shards) > 256 * 1024
    for shard in shards:
        assert cache.path(shard).read_bytes() == (server.folder / shard.name).read_bytes()


def test_a_disk_that_stays_full_is_an_error_that_says_what_to_do(
    server: FaultyServer, small_disk: Path
):
    cache = ShardCache(small_disk)
    shard = remote_shards(server, cache)[0]
    (small_disk / "others").write_bytes(bytes(245_000))
    with pytest.raises(UserError, match="No space left") as caught:
        cache.path(shard)
    assert shard.url in caught.value.problem
    assert "engine.cache_folder" in caught.value.remedy
    assert not list(cache.shards.glob("*.partial"))
    (small_disk / "others").unlink()
    assert cache.path(shard).exists()


def test_a_shard_evicted_under_a_reader_is_read_on_and_then_fetched_again(
    server: FaultyServer, tmp_path: Path
):
    local = open_shards(server.folder)
    cache = ShardCache(tmp_path)
    remote = open_shards(server.url, cache)
    assert remote.read(0) == local.read(0)
    cache.place_of(remote.shards[0]).unlink()
    assert remote.read(1) == local.read(1)  # the file is open
    remote.read(remote.num_samples - 1)  # opening another lets it go
    assert remote.read(2) == local.read(2)
    assert server.requests[remote.shards[0].name] == 2


def test_a_remote_index_must_not_name_local_files(folder: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace('"shard-', f'"file://{folder}/shard-'))
    assert open_shards(copy).read(0)
    with serving(copy) as server, pytest.raises(UserError, match="refers to the local file"):
        open_shards(server.url, ShardCache(tmp_path / "cache"))


def test_records_that_do_not_fit_a_remote_index_are_refused(folder: Path, tmp_path: Path):
    with serving(folder, ["other bytes"] * 2, faulty=".npy") as server:
        cache = ShardCache(tmp_path, attempts=2, report=lambda line: None)
        with pytest.raises(UserError, match=r"cannot fetch .*samples\.npy"):
            open_shards(server.url, cache)
        assert open_shards(server.url, cache).num_samples == 120


def test_a_remote_folder_without_an_index_says_how_to_make_one(tmp_path: Path):
    with serving(tmp_path) as server:
        source = f"{server.url}shard-{{000000..000007}}.tar"
        with pytest.raises(UserError, match=r"no index\.json") as caught:
            open_shards(source, ShardCache(tmp_path / "cache"))
    assert f"ssl-vit shards index '{source}' --out INDEX" in caught.value.remedy


def test_what_a_killed_fetch_of_the_same_shard_left_takes_no_room(
    server: FaultyServer, tmp_path: Path
):
    cache = ShardCache(tmp_path)
    shard = remote_shards(server, cache)[0]
    cache.shards.mkdir(parents=True)
    (cache.shards / f"{shard.sha256}.{shard.num_bytes}.partial").write_bytes(b"half")
    small = ShardCache(tmp_path, num_bytes=shard.num_bytes * 3 // 2)
    fetching = threading.Thread(target=small.fetch, args=(shard,), daemon=True)
    fetching.start()
    fetching.join(PATIENCE)
    assert not fetching.is_alive(), "it waits for room that nobody will make"
    assert names(small) == {f"{shard.sha256}.tar"}


def test_a_copy_that_a_crash_cut_short_is_fetched_again(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path)
    shard = remote_shards(server, cache)[0]
    place = cache.path(shard)
    os.truncate(place, 1_000)
    assert cache.path(shard).read_bytes() == (server.folder / shard.name).read_bytes()


def test_a_partial_whose_lock_is_somebody_elses_by_now_is_left_alone(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = ShardCache(tmp_path)
    first, second = remote_shards(server, cache)[:2]
    cache.path(first)
    partial = cache.shards / f"{second.sha256}.{second.num_bytes}.partial"
    partial.write_bytes(b"another process writes this")
    lock = cache.shards / f"{second.sha256}.lock"
    lock.touch()
    plain = cache_module._try_lock

    def replaced(file: object) -> bool:
        # Between opening and locking: its owner is done, and the next download has begun.
        lock.unlink()
        lock.touch()
        return plain(file)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "_try_lock", replaced)
    assert not cache._evict(second.num_bytes) or partial.exists()
    assert partial.exists()


def test_the_environment_says_how_much_room_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_VIT_CACHE_BYTES", "3GB")
    assert ShardCache().num_bytes == 3 * 10**9
    monkeypatch.setenv("SSL_VIT_CACHE_BYTES", "much")
    with pytest.raises(UserError, match="SSL_VIT_CACHE_BYTES=much"):
        ShardCache()


def flip(path: Path) -> None:
    """One bit, as a disk would: no size, time or inode changes."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 1_000), Path.unlink])
def test_what_an_earlier_run_left_is_verified_before_it_is_used(
    server: FaultyServer, tmp_path: Path, damage: Callable[[Path], None]
):
    earlier = ShardCache(tmp_path)
    shards = remote_shards(server, earlier)
    for shard in shards:
        earlier.path(shard)
    damage(earlier.place_of(shards[1]))
    said: list[str] = []
    later = ShardCache(tmp_path, report=said.append)
    for shard in [*shards, *shards]:
        assert later.path(shard).read_bytes() == (server.folder / shard.name).read_bytes()
    counts = [server.requests[shard.name] for shard in shards]
    assert counts == [1, 2, *[1] * (len(shards) - 2)]
    # A copy that was never whole, or is gone, is no news.
    assert len(said) == (damage is flip)
    if said:
        assert shards[1].url in said[0]
        assert "fetching it again" in said[0]


def test_a_damaged_copy_that_cannot_be_fetched_again_is_not_used(folder: Path, tmp_path: Path):
    with serving(folder) as server:
        earlier = ShardCache(tmp_path)
        shard = remote_shards(server, earlier)[0]
        flip(earlier.path(shard))
    later = ShardCache(tmp_path, attempts=1, report=lambda line: None)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot fetch"):
            later.path(shard)


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that the cache hashes from now on."""
    hashed: list[str] = []
    plain = cache_module.hashlib.file_digest

    def counted(file: BufferedReader, kind: str) -> object:
        hashed.append(str(file.name))
        return plain(file, kind)

    monkeypatch.setattr(cache_module.hashlib, "file_digest", counted)
    return hashed


def test_the_processes_of_a_run_hash_a_shard_once_and_the_next_run_once_more(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = ShardCache(tmp_path)
    shards = remote_shards(server, first)
    for shard in shards:
        first.path(shard)
    hashed = count_hashes(monkeypatch)
    for shard in shards:
        first.path(shard)
    assert not hashed  # compared when they came
    ranks = [ShardCache(tmp_path) for _ in range(3)]
    ranks.append(pickle.loads(pickle.dumps(ranks[0])))  # a prefetcher's
    for rank in ranks:
        for shard in shards:
            rank.path(shard)
            rank.fetch(shard)
    assert sorted(hashed) == sorted(str(first.place_of(shard)) for shard in shards)
    for shard in shards:
        ShardCache(tmp_path).path(shard)
    assert len(hashed) == 2 * len(shards)


def test_a_mark_counts_for_its_file_only(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path)
    shard = remote_shards(server, cache)[0]
    place = cache.path(shard)
    other = ShardCache(tmp_path, report=lambda line: None)
    assert other.path(shard) == place
    place.with_name("new").write_bytes(bytes(shard.num_bytes))
    place.with_name("new").replace(place)
    for each in (other, cache):
        assert each.path(shard).read_bytes() == (server.folder / shard.name).read_bytes()
    assert server.requests[shard.name] == 2
    cache.remove(shard)
    assert not list((tmp_path / "verified").iterdir())


def test_without_marks_each_process_hashes_for_itself(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "verified").write_text("a file where their folder would be")
    cache = ShardCache(tmp_path)
    shard = remote_shards(server, cache)[0]
    cache.path(shard)
    hashed = count_hashes(monkeypatch)
    other = ShardCache(tmp_path)
    for _ in range(3):
        assert other.path(shard).exists()
    assert len(hashed) == 1


def test_what_is_evicted_leaves_no_mark(server: FaultyServer, tmp_path: Path):
    largest = max(shard.num_bytes for shard in open_shards(server.folder).shards)
    cache = ShardCache(tmp_path, num_bytes=2 * largest)
    for shard in remote_shards(server, cache):
        cache.path(shard)
    marks = {path.name for path in (tmp_path / "verified").iterdir()}
    assert marks == {name.removesuffix(".tar") for name in names(cache)}


def test_a_cache_that_somebody_removes_is_filled_again(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache")
    local = open_shards(server.folder)
    remote = open_shards(server.url, cache)
    assert remote.read(0) == local.read(0)
    shutil.rmtree(tmp_path / "cache")
    for number in range(remote.num_samples):
        assert remote.read(number) == local.read(number)
        assert remote.key(number) == local.key(number)


def test_a_cache_that_is_removed_during_a_download_is_made_again(folder: Path, tmp_path: Path):
    with serving(folder, ["hang"]) as server:  # and then it breaks off
        cache = ShardCache(tmp_path / "cache", report=lambda line: None)
        shard = remote_shards(server, cache)[0]
        reader = threading.Thread(target=cache.path, args=(shard,))
        reader.start()
        deadline = time.monotonic() + 20
        while not list(cache.shards.glob("*.partial")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while (tmp_path / "cache").exists():  # a file may be made meanwhile
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        reader.join(20)
        assert not reader.is_alive()
        assert cache.path(shard).read_bytes() == (folder / shard.name).read_bytes()
        # The broken one, perhaps one into the folder that is gone, and the one that came.
        assert server.requests[shard.name] in (2, 3)
    assert not list(cache.shards.glob("*.lock"))
