"""What happened to a run's jobs: one line per event, appended by the process that saw it.

The metrics record what a run learned; the history records when it was started, asked to stop, or
crashed, so that a status needs neither the scheduler's memory nor its accounting.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_vit.files import OptionalWrites, to_json_line
from ssl_vit.foreign import Count, Seconds, typed_lines

Kind = Literal[
    "submitted",  # a job was queued
    "started",  # its first process started
    "stopped",  # it was asked to stop, and saved
    "failed",  # a process ended with an error of the program
    "refused",  # a process found a user's mistake, which another start would repeat
    "crashed",  # the job's processes ended with a nonzero exit code
    "cancelled",  # it was canceled by a user
    "completed",  # all steps are made, and the export is written
    "evaluated",  # the evaluations of an export were queued
    "ended",  # the supervisor of a local job has finished with it
]


@dataclass(frozen=True)
class Event:
    """One event of a run's history."""

    kind: Kind
    job: str
    """The scheduler's job id."""
    time: Seconds
    """Seconds since 1970."""
    step: Count = 0
    """Step of the newest checkpoint; 0 if there is none or it was not looked at."""
    nodes: Count = 0
    """Number of nodes of a start."""
    rank: Count = 0
    """Rank that ended with an error."""
    code: int = 0
    """Exit code of a crash; above 128, 128 plus the signal's number."""
    text: str = ""
    """Node names of a start, signal of a stop, last line of an error, name of an export."""


def line_start(kind: Kind) -> str:
    """How the line of an event begins; batch scripts, which have no JSON parser, rely on it."""
    return f'{{"kind": "{kind}"'


class History:
    """The history of one submission.

    Args:
        folder: The submission's folder. Every rank but the first has a file of its own in it, and
            so have the commands, since two machines that append to one file on NFS lose lines. The
            batch script and the supervisor are on the first rank's machine and share its file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of_commands = folder / "history_commands.jsonl"

    def add(self, kind: Kind, job: str, rank: int = 0, **facts: str | int) -> None:
        """Append an event that happened now, on a rank, if the disk allows it."""
        # On a full disk only a line of the status is lost.
        with OptionalWrites(
            f"the history in {self.folder}", "The job continues without it"
        ).attempt():
            self.append(kind, job, rank, **facts)

    def append(self, kind: Kind, job: str, rank: int = 0, **facts: str | int) -> None:
        """Append an event that happened now, on a rank.

        Raises:
            OSError: It cannot be written.
        """
        line = {"kind": kind, "job": job, "time": time.time(), "rank": rank, **facts}
        file = self.folder / (f"history_{rank}.jsonl" if rank else "history.jsonl")
        if kind in ("submitted", "cancelled"):
            file = self._of_commands
        # Starts a new line if a kill truncated the last one.
        before = file.read_bytes()[-1:] if file.is_file() else b""
        text = "" if before in (b"", b"\n") else "\n"
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text + to_json_line(line))

    def read(self) -> list[Event]:
        """All events so far, in no particular order; lines that a kill truncated are skipped."""
        return list(_read_events(self.folder))

    @property
    def is_canceled(self) -> bool:
        """Whether a command canceled the job."""
        try:
            lines = self._of_commands.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return False
        return any(line.startswith(line_start("cancelled")) for line in lines)


def _read_events(folder: Path) -> Iterator[Event]:
    for file in folder.glob("history*.jsonl"):
        yield from typed_lines(Event, file.read_text("utf-8", "replace").splitlines())


def read_earlier_events(jobs: Path) -> list[Event]:
    """Events in the earlier layout of `RUN/jobs`, with one history for all submissions, and the
    evaluated exports in a file of their own.
    """
    record = jobs / "evaluated.txt"
    names = record.read_text("utf-8", "replace").splitlines() if record.is_file() else []
    return [*_read_events(jobs), *(Event("evaluated", "", 0.0, text=name) for name in names)]


def read_earlier_crashes(record: Path, job: str) -> list[Event]:
    """Crashes in the earlier layout, recorded by a batch script: exit code and seconds per line."""
    if not record.is_file():
        return []
    found = []
    for line in record.read_text("utf-8", "replace").splitlines():
        code, _, when = line.partition(" ")
        if code.isdigit() and when.isdigit():
            # The script recorded whole seconds, rounded down; the processes' events came before.
            found.append(Event("crashed", job, int(when) + 1.0, code=int(code)))
    return found


@dataclass(frozen=True)
class Restart:
    """A start after the first one."""

    time: float
    step: int
    """Step that it resumed from."""
    why: str


def restarts(events: Sequence[Event]) -> list[Restart]:
    """Every start after the first, with the reason that the previous one ended."""
    found: list[Restart] = []
    since: list[Event] = []
    began = False
    for event in events:
        if event.kind != "started":
            since.append(event)
            continue
        if began:
            found.append(Restart(event.time, event.step, why_ended(since)))
        began, since = True, []
    return found


def why_ended(events: Sequence[Event]) -> str:
    """Why a start ended, from the events after it."""
    kinds = {event.kind: event for event in reversed(events)}  # the first of each
    if "completed" in kinds:
        return "completed"
    if "cancelled" in kinds:
        return "canceled"
    failure, stopped = first_failure(events), kinds.get("stopped")
    # After one process has failed, srun asks the others to stop.
    if stopped is not None and (failure is None or stopped.time <= failure.time):
        return f"asked to stop ({stopped.text}), saved at step {stopped.step:,}"
    if (event := kinds.get("refused")) is not None:
        return f"refused: {event.text}"
    if failure is not None:
        return f"crashed: rank {failure.rank}: {failure.text}"
    if (event := kinds.get("crashed")) is not None:
        return f"crashed: {describe_code(event.code)}"
    return "ended without a message: a failed node, or killed"


# Errors of a rank after another one is gone.
_SECONDARY_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL",
    "gloo",
)


def first_failure(events: Sequence[Event]) -> Event | None:
    """The earliest error that is not a consequence of another rank's end; None if all are."""
    primary = [
        event
        for event in events
        if event.kind == "failed" and not any(error in event.text for error in _SECONDARY_ERRORS)
    ]
    return min(primary, key=lambda event: event.time, default=None)


def describe_code(code: int) -> str:
    """An exit code in words."""
    if code == 137:
        return "a process was killed (SIGKILL: manually, or out of memory)"
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
