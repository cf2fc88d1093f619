"""A job on this machine, without SLURM: a supervisor process starts the run's processes and treats
them as a cluster would.

* On SIGUSR2 or SIGTERM, sent to it or to a process of the run, the processes save and the
  supervisor starts them again.
* If one dies, the others are ended and all are started again, up to `max_crashes` consecutive
  crashes without a new checkpoint.
* `ssl-vit launch cancel` adds a line to the history: the processes save, and the job ends.

The supervisor holds a lock as long as it lives, so that a status does not depend on process ids,
which are reused.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from ssl_vit.distributed import local_group
from ssl_vit.training.preemption import EXIT_SAVED
from ssl_vit_launch.batch import evaluation_logs
from ssl_vit_launch.evaluations import ExportWatch, words_of
from ssl_vit_launch.job import EXIT_REFUSED, EXIT_TERMINATED, newest_step
from ssl_vit_launch.slurm import JobState
from ssl_vit_launch.submission import Submission, events_of, history_of, last_submission

_POLL_SECONDS = 0.1
# Time for the others to end by themselves after one process has died.
_GRACE_SECONDS = 5.0

# Exit codes of processes that were asked to stop: saved, or ended before they handled signals.
_STOPPED = (EXIT_SAVED, EXIT_TERMINATED, -signal.SIGUSR2, -signal.SIGTERM)

Ending = Literal["complete", "refused", "saved", "crashed"]


def start_local(waiting: Sequence[Submission]) -> list[str]:
    """Start a supervisor that trains these runs one after the other; returns their job ids."""
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
        time.sleep(_POLL_SECONDS / 10)
    return _job_ids(supervisor.pid, len(waiting))


def _job_ids(number: int, count: int) -> list[str]:
    return [str(number)] if count == 1 else [f"{number}_{place}" for place in range(count)]


def find_local(submission: Submission) -> JobState:
    """State of a local job."""
    # Process ids are reused, in containers after a short time.
    seen = {
        event.kind
        for event in events_of(Path(submission.run))
        if event.job == submission.job and event.time >= submission.time - 1
    }
    logs = Path(submission.logs)
    # The supervisor lives longer than the job if the sweep has other runs.
    if not _is_held(logs) or "ended" in seen:
        if "completed" in seen:
            return JobState("COMPLETED")
        return JobState("CANCELLED" if "cancelled" in seen else "FAILED")
    state = "RUNNING" if "started" in seen else "PENDING"
    return JobState(state, nodes=_lock_file(logs).read_text())


def _lock_file(logs: Path) -> Path:
    """A file with the machine's name, locked by the supervisor."""
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
    """Supervises one run until it ends.

    Args:
        submission: The run's submission, with the job id.
    """

    def __init__(self, submission: Submission) -> None:
        self.submission, self.job = submission, submission.job
        self.run, self.logs = Path(submission.run), Path(submission.logs)
        self.history = history_of(self.run)
        self.is_asked = False
        """Whether the processes should save and end."""
        self._asked_by = signal.SIGTERM
        self._evaluations: list[subprocess.Popen[bytes]] = []

    @property
    def is_canceled(self) -> bool:
        """Whether the job was canceled, or its folder removed."""
        return not self.history.folder.is_dir() or self.history.is_canceled

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.is_asked, self._asked_by = True, signal.Signals(number)

    def supervise(self) -> int:
        """Start the processes as often as needed, then evaluate; returns the job's exit code."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self.ask)
        try:
            code = self._restart()
            if code == 0:
                for text in self.submission.then:
                    self._evaluate(words_of(text, self.run))
            while self._evaluations and not self.is_canceled:
                self._evaluations = [each for each in self._evaluations if each.poll() is None]
                time.sleep(_POLL_SECONDS)
        finally:
            _kill(self._evaluations)
            self.history.add("ended", self.job)
        return code

    def _restart(self) -> int:
        crashes, progress = 0, -1
        while not self.is_canceled:
            match self._run_once():
                case "complete":
                    return 0
                case "refused":
                    return EXIT_REFUSED
                case "saved":
                    print("saved", flush=True)
                case "crashed":
                    reached = newest_step(self.run)
                    crashes = 1 if reached > progress else crashes + 1
                    progress = reached
                    if crashes >= self.submission.cluster.max_crashes:
                        print(f"{crashes} consecutive crashes without a new checkpoint", flush=True)
                        return 1
        return EXIT_SAVED

    def _run_once(self) -> Ending:
        count = self.submission.nodes * self.submission.cluster.processes_per_node
        words = [sys.executable, "-u", "-m", "ssl_vit_launch.job", str(self.run), self.job]
        self.is_asked = False
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank, place in enumerate(local_group(count)):
                log = self.logs / f"{self.job}_{rank}_log.out"
                ranks.append(self._start(words, log, place))
            first_bad = self._wait(ranks)
        finally:
            _kill(ranks)
        codes = [rank.returncode for rank in ranks]
        if not any(codes):
            return "complete"
        if EXIT_REFUSED in codes:
            return "refused"
        was_asked = self.is_asked and set(codes) <= {0, *_STOPPED}
        if was_asked or codes[0] == EXIT_SAVED:
            return "saved"
        code = first_bad or min(codes)
        self.history.add("crashed", self.job, code=128 - code if code < 0 else code)
        return "crashed"

    def _wait(self, ranks: Sequence[subprocess.Popen[bytes]]) -> int:
        """Wait until all processes have ended, and end them if one failed; returns the exit code of
        the first that failed, 0 if none did.
        """
        exports = ExportWatch(self.submission)
        deadline, first_bad, is_signaled = float("inf"), 0, False
        while any(rank.poll() is None for rank in ranks):
            time.sleep(_POLL_SECONDS)
            if not is_signaled and (self.is_asked or self.is_canceled):
                self.is_asked = is_signaled = True
                for rank in ranks:
                    rank.send_signal(self._asked_by)
            early = [rank.returncode for rank in ranks if rank.returncode not in (None, 0)]
            if early and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE_SECONDS
            if not first_bad:  # a killed process comes before those that failed because of it
                first_bad = min((code for code in early if code not in _STOPPED), default=0)
            if time.monotonic() > deadline:
                _kill(ranks)
            if self.submission.at_exports:
                with contextlib.suppress(OSError):  # training matters more
                    exports.take(self._evaluate)
        return first_bad

    def _evaluate(self, words: Sequence[str]) -> None:
        """Start an evaluation."""
        folder = Path(evaluation_logs(self.submission))
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "ssl_vit", *words]
        log = folder / f"{self.job}_0_log.out"
        self._evaluations.append(self._start(command, log, {}))

    def _start(
        self, words: Sequence[str], log: Path, place: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process with the profile's environment, and the snapshot's code if asked for."""
        environment = {**os.environ, **self.submission.cluster.exports(), **place}
        if self.submission.code:
            paths = (self.submission.code, environment.get("PYTHONPATH", ""))
            environment["PYTHONSAFEPATH"] = "1"  # keeps the submission directory off sys.path
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with log.open("a") as output:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # with its data workers
            )


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill the processes that are still running, with their children."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(logs: Path, runs: Sequence[Path]) -> int:
    """Supervise runs one after the other; returns the last nonzero exit code."""
    lock: IO[str] = _lock_file(logs).open("w")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    lock.write(os.uname().nodename)
    lock.flush()
    worst = 0
    for run, job in zip(runs, _job_ids(os.getpid(), len(runs)), strict=True):
        # The submitting command writes the id later than this process starts.
        submission = last_submission(run).model_copy(update={"job": job})
        worst = Supervisor(submission).supervise() or worst
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]))
