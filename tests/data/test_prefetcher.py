"""The process that has shards ready: what it walks, fetches ahead, verifies, and how it ends."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.data.access_plan import AccessPlan, SequentialAccess, TrainingAccess, check_room
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.mixture import MixedOrder
from ssl_vit.data.order import Order, SampleOrder
from ssl_vit.data.prefetcher import ShardPrefetcher, _Job, _Walk
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from tests.faulty_server import FaultyServer, serving
from tests.synthetic import write_shards

LANES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), per_class=80, shard_bytes=20_000)


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with serving(folder) as running:
        yield running


def order_of(shards: ShardSet, block: int = 10) -> SampleOrder:
    sizes = [shard.num_samples for shard in shards.shards]
    return SampleOrder(sizes, LANES, LANES * 2, block, seed=3)


def training_needs(shards: ShardSet, steps: int) -> TrainingAccess:
    return TrainingAccess(order_of(shards), range(LANES), steps)


def wait_for(condition: object, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shards_read(order: Order, shards: ShardSet, step: int, lanes: range) -> set[int]:
    return {shards.shard_of(ref.number) for ref in order.update(step, lanes)}


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
@pytest.mark.parametrize("lanes", [range(LANES), range(1, 2), range(2, 4)])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0, 0.3)])
def test_needs_name_every_shard_before_it_is_read(
    folder: Path, block: int, lanes: range, weights: tuple[float, ...]
):
    shards = open_shards([str(folder)] * (3 if weights else 1))
    order: Order = order_of(open_shards(folder), block)
    if weights:
        order = MixedOrder([order_of(open_shards(folder), block) for _ in weights], weights, 1)
    access_plan = TrainingAccess(order, lanes, 150)
    change = 0
    known: set[int] = set()
    for step in range(access_plan.end):
        now = access_plan.shards_at(step)
        assert len(set(now)) == len(now)
        assert shards_read(order, shards, step, lanes) <= set(now)
        if step < change:
            assert set(now) <= known  # nothing new before the change that was announced
        else:
            change, known = access_plan.next_change(step), set(now)
            assert change > step
        known |= set(now)


def test_needs_of_a_pass_in_order(folder: Path):
    shards = open_shards(folder)
    numbers = np.arange(3, shards.num_samples, 7)
    access_plan = SequentialAccess(shards.starts, numbers)
    assert access_plan.end == len(numbers)
    for position, number in enumerate(numbers):
        assert access_plan.shards_at(position) == [shards.shard_of(int(number))]
    position, visited = 0, []
    while position < access_plan.end:
        visited += access_plan.shards_at(position)
        position = access_plan.next_change(position)
    assert visited == sorted({shards.shard_of(int(number)) for number in numbers})


def damaged_copy(folder: Path, target: Path, number: int) -> Path:
    """The set with one byte flipped in one shard, where no decoder looks."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    path = target / open_shards(folder).shards[number].name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the empty blocks at its end
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("number", [0, 5])
def test_a_damaged_local_shard_is_named(folder: Path, tmp_path: Path, number: int):
    path = damaged_copy(folder, tmp_path / "copy", number)
    shards = open_shards(path.parent)
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, training_needs(shards, 5))
    with pytest.raises(UserError, match="is damaged") as caught:
        prefetcher.finish(5)
    prefetcher.close()
    assert str(path) in caught.value.problem
    assert "shards check" in caught.value.remedy


def test_a_damaged_shard_is_told_while_the_run_goes_on(folder: Path, tmp_path: Path):
    path = damaged_copy(folder, tmp_path / "copy", 2)
    shards = open_shards(path.parent)
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, training_needs(shards, 10**6))

    def advance() -> None:
        deadline = time.monotonic() + 300
        for step in itertools.count():
            assert time.monotonic() < deadline
            prefetcher.advance(step)
            time.sleep(0.02)

    with pytest.raises(UserError, match=path.name):
        advance()
    prefetcher.close()


def test_whole_shards_pass_and_verification_can_be_turned_off(folder: Path, tmp_path: Path):
    shards = open_shards(folder)
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, training_needs(shards, 5))
    prefetcher.finish(5)
    prefetcher.close()
    path = damaged_copy(folder, tmp_path / "copy", 0)
    shards = open_shards(path.parent)
    trusting = ShardPrefetcher(
        shards.shards, shards.cache, training_needs(shards, 5), verifies=False
    )
    assert trusting._process is None
    trusting.finish(5)
    trusting.close()


def test_remote_shards_are_there_before_they_are_asked_for(server: FaultyServer, tmp_path: Path):
    cache = ShardCache(tmp_path)
    shards = open_shards(server.url, cache)
    access_plan = training_needs(shards, 1000)
    prefetcher = ShardPrefetcher(shards.shards, cache, access_plan)
    wait_for(lambda: all(cache.place_of(shard).exists() for shard in shards.shards))
    prefetcher.close()
    assert {server.requests[shard.name] for shard in shards.shards} == {1}


def test_in_a_small_cache_the_next_shards_take_the_place_of_those_that_are_done(
    server: FaultyServer, tmp_path: Path
):
    local = open_shards(server.folder)
    largest = max(shard.num_bytes for shard in local.shards)
    cache = ShardCache(tmp_path, num_bytes=3 * largest)
    shards = open_shards(server.url, cache)
    assert len(shards.shards) >= 8
    numbers = np.arange(shards.num_samples)
    access_plan: AccessPlan = SequentialAccess(shards.starts, numbers)
    prefetcher = ShardPrefetcher(shards.shards, cache, access_plan)

    def used() -> int:
        total = 0
        for entry in os.scandir(cache.shards):
            with contextlib.suppress(FileNotFoundError):  # evicted just now
                total += entry.stat().st_size
        return total

    for position, number in enumerate(numbers.tolist()):
        prefetcher.advance(position)
        shard = shards.shards[shards.shard_of(number)]
        wait_for(cache.place_of(shard).exists)
        assert shards.read(number) == local.read(number)
        assert used() <= 3 * largest
        time.sleep(0.01)
    prefetcher.finish(access_plan.end)
    prefetcher.close()
    assert {server.requests[shard.name] for shard in shards.shards} == {1}


def test_a_remote_shard_with_other_bytes_ends_the_run_by_name(folder: Path, tmp_path: Path):
    path = damaged_copy(folder, tmp_path / "copy", 0)
    with serving(path.parent) as server:
        cache = ShardCache(tmp_path / "cache", attempts=2)
        shards = open_shards(server.url, cache)
        prefetcher = ShardPrefetcher(shards.shards, cache, training_needs(shards, 1000))
        with pytest.raises(UserError, match="sha256 differs") as caught:
            prefetcher._listen(wait=True)
        prefetcher.close()
    assert f"{server.url}{path.name}" in caught.value.problem


def test_the_process_ends_with_its_rank(folder: Path):
    program = (
        "import sys, time\n"
        "from ssl_vit.data.prefetcher import ShardPrefetcher\n"
        "from ssl_vit.data.access_plan import SequentialAccess\n"
        "from ssl_vit.data.sources import open_shards\n"
        "import numpy as np\n"
        "shards = open_shards(sys.argv[1])\n"
        "access_plan = SequentialAccess(shards.starts, np.arange(shards.num_samples))\n"
        "prefetcher = ShardPrefetcher(shards.shards, shards.cache, access_plan)\n"
        "print(prefetcher._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    prefetcher = int(rank.stdout.readline())
    os.kill(prefetcher, 0)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    wait_for(lambda: not Path(f"/proc/{prefetcher}").exists() or _is_dead(prefetcher))
    rank.stdout.close()


def _is_dead(process: int) -> bool:
    """Ended, and nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_keeper_that_was_killed_is_said(folder: Path):
    shards = open_shards(folder)
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, training_needs(shards, 10**6))
    assert prefetcher._process is not None
    prefetcher._process.kill()
    with pytest.raises(UserError, match="exit code -9") as caught:
        prefetcher.finish(10)
    # A job is started again: srun ends it too, when a rank has failed.
    assert caught.value.may_pass
    prefetcher.close()


def test_shards_that_do_not_fit_the_cache_together_are_refused(
    server: FaultyServer, tmp_path: Path
):
    shards = open_shards(server.url, ShardCache(tmp_path))
    in_use = order_of(shards, 1000).shards_at(0, range(LANES))
    needed = sum(shards.shards[number].num_bytes for number in in_use)
    check_room(shards.shards, in_use, needed)
    with pytest.raises(UserError, match=r"more than engine\.cache_bytes") as caught:
        check_room(shards.shards, in_use, needed - 1)
    assert "data.lanes" in caught.value.remedy
    check_room(open_shards(server.folder).shards, in_use, 1)  # local ones need no cache


def test_it_imports_what_its_rank_imports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    shards = open_shards(folder)
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, training_needs(shards, 10))
    prefetcher.finish(10)
    prefetcher.close()


@pytest.mark.parametrize("small", [0, 2**40])
def test_a_fast_rank_waits_at_the_end_for_all_that_it_has_read(
    small: int, folder: Path, tmp_path: Path
):
    """A rank of two verifies half of a small set, and all that it has read itself."""
    shards = open_shards(damaged_copy(folder, tmp_path / "copy", 6).parent)
    job = _Job(shards.shards, shards.cache, training_needs(shards, 10), 0, True, (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_vit.data.prefetcher._SMALL_SET", small)
        walk = _Walk(job)
    assert bool(walk._all_local) == bool(small)
    walk.position = walk.goal = 10  # all steps were made before it looked for the first time
    read = {n for step in range(10) for n in job.access_plan.shards_at(step)}
    assert 6 in read
    with pytest.raises(UserError, match=f"shard .*{shards.shards[6].name} is damaged"):
        walk.run()
