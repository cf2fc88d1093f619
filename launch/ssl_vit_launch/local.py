"""A job on this machine, without SLURM: a supervisor process of its own starts the run's processes,
and does with them what a cluster does.

* Asked to make room (SIGUSR2 or SIGTERM, to it or to a process of the run), the processes save and
  the supervisor starts them again.
* When one dies, the others are ended and all are started again, until there were too many crashes
  without a new checkpoint.
* Ctrl-C and `ssl-vit launch cancel` save and end the job.

The supervisor holds a lock as long as it lives, so a status does not depend on process numbers,
which are used again.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from ssl_vit.distributed import local_group
from ssl_vit.training.preemption import EXIT_SAVED
from ssl_vit_launch.evaluations import ExportWatch, words_of
from ssl_vit_launch.history import History
from ssl_vit_launch.job import newest_step
from ssl_vit_launch.slurm import JobState
from ssl_vit_launch.submission import Submission, history_of, newest_submission

_LOOK_SECONDS = 0.1
# What the others have for their last words, after one process has died.
_GRACE_SECONDS = 5.0

_GOOD = (None, 0, EXIT_SAVED)

Ending = Literal["complete", "refused", "saved", "crashed"]


def start_local(waiting: Sequence[Submission]) -> list[str]:
    """Start a supervisor for these runs, one after the other; returns their job ids."""
    logs = Path(waiting[0].logs)
    command = [sys.executable, "-m", "ssl_vit_launch.local", str(logs)]
    with (logs / "supervisor_log.out").open("a") as log:
        supervisor = subprocess.Popen(
            [*command, *(each.run for each in waiting)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # outlives the terminal
        )
    while not _is_held(logs) and supervisor.poll() is None:
        time.sleep(_LOOK_SECONDS / 10)
    return _job_ids(supervisor.pid, len(waiting))


def _job_ids(number: int, count: int) -> list[str]:
    return [str(number)] if count == 1 else [f"{number}_{place}" for place in range(count)]


def find_local(submission: Submission) -> JobState:
    """Where a local job is."""
    logs = Path(submission.logs)
    events = history_of(Path(submission.run)).read()
    seen = {event.kind for event in events if event.job == submission.job}
    # The supervisor goes on with the evaluations, and with the other runs of a sweep.
    if not _is_held(logs) or (logs / f"ended_{submission.index}").exists():
        return JobState(
            "COMPLETED" if "completed" in seen else "CANCELLED" if "cancelled" in seen else "FAILED"
        )
    return JobState("RUNNING" if "started" in seen else "PENDING", nodes=os.uname().nodename)


def end_local(submission: Submission) -> None:
    """Ask the supervisor to end the job."""
    (Path(submission.logs) / f"cancel_{submission.index}").touch()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(submission.job.partition("_")[0]), signal.SIGTERM)


def _lock_file(logs: Path) -> Path:
    return logs / ".supervisor"


def _is_held(logs: Path) -> bool:
    try:
        with _lock_file(logs).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Supervisor:
    """Runs one run to its end.

    Args:
        submission: What was asked for.
        job: Its id.
    """

    def __init__(self, submission: Submission, job: str) -> None:
        self.submission, self.job = submission, job
        self.run = Path(submission.run)
        self.history: History = history_of(self.run)
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.is_asked = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the job shall end."""
        return (Path(self.submission.logs) / f"cancel_{self.submission.index}").exists()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: pass it on, so that the processes save."""
        if number == signal.SIGINT:
            self.history.add("cancelled", self.job)
            (Path(self.submission.logs) / f"cancel_{self.submission.index}").touch()
        self.is_asked = True
        for rank in self.ranks:
            rank.send_signal(signal.SIGUSR2)

    def supervise(self) -> int:
        """Start the processes as often as is needed; returns the job's exit code."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)
        crashes, progress = 0, -1
        while not self.is_cancelled:
            self.is_asked = False
            match self._run_once():
                case "complete":
                    return 0
                case "refused":
                    return 2
                case "saved":
                    print("saved; starting again", flush=True)
                case "crashed":
                    reached = newest_step(self.run)
                    crashes = 1 if reached > progress else crashes + 1
                    progress = reached
                    if crashes >= self.submission.cluster.max_crashes:
                        print(f"{crashes} crashes in a row without a new checkpoint", flush=True)
                        return 1
        return EXIT_SAVED

    def _run_once(self) -> Ending:
        cluster, logs = self.submission.cluster, Path(self.submission.logs)
        count = self.submission.nodes * cluster.processes_per_node
        environment = {**os.environ, **cluster.exports()}
        if self.submission.code:
            above = os.environ.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [self.submission.code, above]))
        words = [sys.executable, "-u", "-m", "ssl_vit_launch.job", str(self.run), self.job]
        self.ranks = []
        for rank, place in enumerate(local_group(count)):
            with (logs / f"{self.job}_{rank}_log.out").open("a") as log:
                self.ranks.append(
                    subprocess.Popen(
                        words,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment | place,
                        start_new_session=True,  # with its data workers
                    )
                )
        first_bad = self._wait()
        codes = [rank.returncode for rank in self.ranks]
        self.ranks = []
        if not any(codes):
            return "complete"
        if self.submission.refusal.exists():
            return "refused"
        early = {-signal.SIGUSR2, -signal.SIGTERM}  # before they knew what to do with a signal
        if (self.is_asked and set(codes) <= {0, EXIT_SAVED, *early}) or codes[0] == EXIT_SAVED:
            return "saved"
        code = first_bad or min(codes)
        self.history.add("crashed", self.job, code=128 - code if code < 0 else code)
        return "crashed"

    def _wait(self) -> int:
        """Until all processes have ended, which they do soon after one ended badly; returns how the
        first bad one ended.
        """
        exports = ExportWatch(self.submission)
        evaluations: list[subprocess.Popen[bytes]] = []
        deadline, first_bad = float("inf"), 0
        while any(rank.poll() is None for rank in self.ranks):
            time.sleep(_LOOK_SECONDS)
            bad = [rank.returncode for rank in self.ranks if rank.returncode not in _GOOD]
            if bad and not first_bad:
                first_bad = min(bad)  # one that was killed before those that noticed
                deadline = time.monotonic() + _GRACE_SECONDS
            if time.monotonic() > deadline:
                for rank in self.ranks:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(rank.pid, signal.SIGKILL)
            if self.submission.at_exports:
                exports.take(lambda words: evaluations.append(self._evaluate(words)))
        for evaluation in evaluations:
            evaluation.wait()
        return first_bad

    def evaluate_end(self) -> None:
        """Make the evaluations of the end, one after the other."""
        for text in self.submission.then:
            self._evaluate(words_of(text, self.run)).wait()

    def _evaluate(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        folder = Path(self.submission.logs) / "then"
        folder.mkdir(exist_ok=True)
        with (folder / f"{self.job}_0_log.out").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ssl_vit", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def main(logs: Path, runs: Sequence[Path]) -> int:
    """Be the supervisor of some runs; returns the last bad exit code."""
    lock: IO[str] = _lock_file(logs).open("w")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    worst = 0
    for run, job in zip(runs, _job_ids(os.getpid(), len(runs)), strict=True):
        submission = newest_submission(run)
        assert submission is not None
        # The one who submits writes the id later than we begin.
        supervisor = Supervisor(submission.model_copy(update={"job": job}), job)
        code = supervisor.supervise()
        if code == 0:
            supervisor.evaluate_end()
        (logs / f"ended_{supervisor.submission.index}").touch()
        worst = code or worst
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]))
