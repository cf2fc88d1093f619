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
    "completed",
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
    """Node names of a start, the signal's name of a stop, the last line of an error."""


class History:
    """The history of one run folder.

    Args:
        folder: `jobs/` of the run folder. Every rank but the first has a file of its own in it,
            since two machines that append to one file on NFS lose lines.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, kind: Kind, job: str, rank: int = 0, **facts: str | int) -> None:
        """Append an event that happened now, on a rank."""
        line = {"kind": kind, "job": job, "time": time.time(), "rank": rank, **facts}
        file = self.folder / (f"history_{rank}.jsonl" if rank else "history.jsonl")
        # On a full disk only a line of the status is lost.
        with OptionalWrites(f"the history {file}", "The job continues without it").attempt():
            # Starts a new line if a kill truncated the last one.
            before = file.read_bytes()[-1:] if file.is_file() else b""
            text = "" if before in (b"", b"\n") else "\n"
            with file.open("a", encoding="utf-8") as opened:
                opened.write(text + to_json_line(line))

    def read(self, crashes: Sequence["Event"] = ()) -> list[Event]:
        """All events so far, oldest first; lines that a kill truncated are skipped.

        Args:
            crashes: Events that batch scripts recorded (:func:`read_crashes`).
        """
        return sorted([*self._events(), *crashes], key=lambda event: event.time)

    def _events(self) -> Iterator[Event]:
        for file in self.folder.glob("history*.jsonl"):
            yield from typed_lines(Event, file.read_text("utf-8", "replace").splitlines())


def read_crashes(file: Path, job: str) -> list[Event]:
    """Crashes that a batch script recorded, one per line: exit code and time in seconds."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text().splitlines():
        code, _, when = line.partition(" ")
        if code.isdigit() and when.isdigit():
            # The script records whole seconds, rounded down; the processes' own events came before.
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
