"""A process per rank that prepares its shards: fetched before they are needed, verified once.

The order of training is known to its end, so the shards that it will need next are known too. The
prefetcher works through this order ahead of the run: it fetches remote shards into the cache until
the rank's share of it is full, holds those in use against eviction, and releases those that are
done. Local shards are compared with the sha256 in their index when they are about to be read for
the first time, and again when they change while they are in use, so a damaged shard stops the run
with its name instead of training on noise.

A process and not a thread: downloads and hashes would slow the rank's own Python. It reads the
run's position from its standard input and ends with it.
"""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

from ssl_vit.data.access_plan import AccessPlan
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import Shard
from ssl_vit.data.integrity import Watch, verify
from ssl_vit.data.urls import is_local
from ssl_vit.errors import UserError

# With the rank's own sys.path: `-c` would put the current folder, with any `random.py`, first.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from ssl_vit.data.prefetcher import main; main()"
_STREAMS = 4  # downloads at the same time
# If local shards take no more than this together, all are verified, read or not: a damaged set is
# reported within seconds of the start.
_SMALL_SET = 4 * 2**30
_TICK = 0.05  # seconds between two rounds of the loop
_FURTHEST = 1_000  # changes of the shards in use to look ahead
_REPORT_SECONDS = 0.1  # between two reports of the position
_PATIENCE = 2.0  # seconds of waiting at the end before a line is printed


class ShardPrefetcher:
    """The rank's side of the prefetcher.

    Args:
        shards: All shards of the set.
        cache: Where remote ones are kept.
        access_plan: The shards that this rank reads.
        start: Position at which the run begins.
        verifies: Compare local shards with their index.
        share: The number of this rank among the ranks of this machine, and their count: they share
            the cache's space and the verification of a small set.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        cache: ShardCache,
        access_plan: AccessPlan,
        start: int = 0,
        verifies: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._reported = 0.0
        if start >= access_plan.end or not (verifies or any(not is_local(s.url) for s in shards)):
            return
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        job = _Job(tuple(shards), cache, access_plan, start, verifies, share)
        self._write(pickle.dumps(job))

    def advance(self, position: int) -> None:
        """Report the run's position; nothing before it is read any more.

        Raises:
            UserError: A shard cannot be fetched, or is damaged; names it.
        """
        if self._process is None:
            return
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._write(b"at %d\n" % position)
        self._listen(wait=False)

    def finish(self, position: int) -> None:
        """Wait until everything that was read before this position is verified, and is known not
        to have changed while it was in use.

        Raises:
            UserError: A shard is damaged; names it.
        """
        if self._process is None:
            return
        self._write(b"finish %d\n" % position)
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            print("verifying the last shards …", file=sys.stderr, flush=True)
        self._listen(wait=True)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._listen(wait=True)  # its last message gives the reason

    def _listen(self, wait: bool) -> None:
        """Read a message of the process.

        Raises:
            UserError: The process reports an error, or has ended.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        if not wait and not select.select([self._process.stdout], [], [], 0)[0]:
            return
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            memory = (
                "; usually out of memory: lower engine.workers or engine.prefetch"
                if code == -signal.SIGKILL
                else ""
            )
            raise UserError(
                f"the process that fetches and verifies shards ended with exit code {code}",
                f"run the same command again{memory}",
                may_pass=True,  # srun's signal may reach it while it starts
            )
        message = json.loads(line)
        if "problem" in message:
            raise UserError(message["problem"], message["remedy"])


@dataclass(frozen=True)
class _Job:
    """The first message to the process."""

    shards: tuple[Shard, ...]
    cache: ShardCache
    access_plan: AccessPlan
    start: int
    verifies: bool
    share: tuple[int, int]


class _Walk:
    """The work of the process: a loop over the shards that are needed, soonest first."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.position, self.goal = job.start, -1
        self._window: list[int] = []
        self._in_use: list[int] = []  # local ones of the window
        self._window_ends = job.start
        self._verified_to = job.start
        self._ready: set[int] = set()  # a remote one may have been evicted since
        self._watch = Watch(job.shards)
        self._suspects: set[int] = set()  # changed since they were verified
        self._has_looked_last = False
        self._held: dict[int, IO[bytes]] = {}
        self._used: list[int] = []
        self._used_at = -1
        self._running: dict[Future[None], int] = {}
        self._pool = ThreadPoolExecutor(_STREAMS)
        local = [number for number, shard in enumerate(job.shards) if is_local(shard.url)]
        self._any_remote = len(local) < len(job.shards)
        is_small = sum(job.shards[number].num_bytes for number in local) <= _SMALL_SET
        mine = local[job.share[0] :: job.share[1]]
        self._all_local = mine if job.verifies and is_small else []

    def listen(self, lines: Iterable[bytes]) -> None:
        """Read the rank's messages until it closes the stream; runs in its own thread."""
        for line in lines:
            word, number = line.split()
            self.position = max(self.position, int(number))
            if word == b"finish":
                self.goal = int(number)
        os._exit(0)  # the rank has ended

    def run(self) -> None:
        """Work until all that was read is verified and the rank has finished, or a shard fails."""
        while not self._is_done():
            for future in [future for future in self._running if future.done()]:
                future.result()
                number = self._running.pop(future)
                self._ready.add(number)
                self._suspects.discard(number)
            self._hold_and_retire()
            if self.position >= self._window_ends:
                self._look_ahead()
            self._suspect(self._watch.look(self._in_use))
            for number in [*self._suspects, *self._window]:
                if len(self._running) >= _STREAMS:
                    break
                if number not in self._ready and number not in self._running.values():
                    self._running[self._pool.submit(self._make_ready, number)] = number
            time.sleep(_TICK)

    def _make_ready(self, number: int) -> None:
        shard = self.job.shards[number]
        if not is_local(shard.url):
            self.job.cache.fetch(shard)
        elif self.job.verifies:
            self._watch.add(number, verify(shard, was_whole=self._watch.knows(number)))

    def _suspect(self, numbers: Iterable[int]) -> None:
        """Have these shards hashed again."""
        self._suspects.update(numbers)
        self._ready.difference_update(numbers)

    def _is_done(self) -> bool:
        """Whether all that was read is verified, and did not change while it was in use."""
        if self.goal < 0 or not self._has_verified(self.goal):
            return False
        if not self._has_looked_last:
            self._has_looked_last = True
            self._suspect(self._watch.look_last())
        return not self._suspects

    def _hold_and_retire(self) -> None:
        """Hold the remote shards in use now, and release those that were in use before."""
        if not self._any_remote:
            return
        cache, shards = self.job.cache, self.job.shards
        position = self.position
        if position != self._used_at:
            self._used_at = position
            inside = position < self.job.access_plan.end
            self._used = self.job.access_plan.shards_at(position) if inside else []
        used = self._used
        for number in [number for number in self._held if number not in used]:
            self._held.pop(number).close()
            cache.retire(shards[number])
            self._ready.discard(number)
        for number in used:
            if number in self._held or is_local(shards[number].url):
                continue
            if held := cache.hold(shards[number]):
                self._held[number] = held
            else:
                self._ready.discard(number)

    def _look_ahead(self) -> None:
        """List the shards needed from here on, soonest first: as many remote shards as there is
        space for; if all are local, those in use and those of the next change.
        """
        access_plan, shards = self.job.access_plan, self.job.shards
        position, room = self.position, self.job.cache.num_bytes // self.job.share[1]
        window: dict[int, None] = {}
        for change in range(_FURTHEST if self._any_remote else 2):
            if position >= access_plan.end or len(window) == len(shards):
                break
            new = [number for number in access_plan.shards_at(position) if number not in window]
            room -= sum(
                shards[number].num_bytes for number in new if not is_local(shards[number].url)
            )
            if room < 0 and change > 0:
                break
            window |= dict.fromkeys(new)
            position = access_plan.next_change(position)
            if change == 0:
                self._window_ends = position
        # First the shards that a fast rank has read before they were verified.
        behind = dict.fromkeys(self._unverified(self.position))
        self._in_use = [number for number in behind | window if is_local(shards[number].url)]
        self._watch.use(self._in_use)
        self._window = list(behind | window | dict.fromkeys(self._all_local))
        for number in self._window:
            shard = shards[number]
            if number in self._ready and not is_local(shard.url):
                # Another rank may have evicted or retired it.
                self._ready.discard(number)
                if held := self.job.cache.hold(shard):
                    held.close()
                    self._ready.add(number)

    def _has_verified(self, goal: int) -> bool:
        """Whether all local shards read before a position, or all of a small set, are verified."""
        if self._suspects or self._unverified(goal):
            return False
        return self._ready.issuperset(self._all_local)

    def _unverified(self, goal: int) -> list[int]:
        """Local shards that were read before a position but not yet verified."""
        access_plan, shards = self.job.access_plan, self.job.shards
        found: dict[int, None] = {}
        position = self._verified_to
        while position < min(goal, access_plan.end):
            local = [n for n in access_plan.shards_at(position) if is_local(shards[n].url)]
            self._watch.use(local)
            found |= dict.fromkeys(number for number in local if number not in self._ready)
            position = access_plan.next_change(position)
            if not found:
                self._verified_to = position
        return list(found)


def main() -> None:
    """Run the process: reads a job and then lines on standard input, writes JSON lines."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the rank still saves, and then ends this process
    os.nice(5)
    walk = _Walk(pickle.load(sys.stdin.buffer))
    threading.Thread(target=walk.listen, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        walk.run()
        message: dict[str, Any] = {"finished": True}
    except UserError as error:
        message = {"problem": error.problem, "remedy": error.remedy}
    print(json.dumps(message), flush=True)
    threading.Event().wait()  # the rank ends this process
