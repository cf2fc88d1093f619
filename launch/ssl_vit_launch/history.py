"""What happened to a run's jobs: one line for each thing, appended by whoever saw it.

The run's metrics say what it learned; this says when it was started, asked to stop, or died, so
that a status needs neither the scheduler's memory nor its accounting.
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
    "started",  # its first process began
    "stopped",  # it was asked to stop, and saved
    "failed",  # a process ended with an error
    "refused",  # a process found a mistake that starting again would repeat
    "crashed",  # the job's processes ended with a bad exit code
    "cancelled",  # somebody asked for its end
    "completed",
]


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    kind: Kind
    job: str
    """The scheduler's id of the job."""
    time: Seconds
    """In seconds since 1970."""
    step: Count = 0
    """Updates in the newest checkpoint, where that was looked at."""
    nodes: Count = 0
    """Of a start: how many machines took part."""
    rank: Count = 0
    """Of an error: whose."""
    code: int = 0
    """Of a crash: the exit code; above 128 a signal's number and 128."""
    text: str = ""
    """A signal's name, an error's last line."""


class History:
    """The history of one run folder.

    Args:
        folder: `jobs/` of the run folder. Every rank but the first has a file of its own there:
            two machines that append to one file on NFS lose lines.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, kind: Kind, job: str, rank: int = 0, **facts: str | int) -> None:
        """Append what happened now, to or on a rank."""
        line = {"kind": kind, "job": job, "time": time.time(), "rank": rank, **facts}
        file = self.folder / (f"history_{rank}.jsonl" if rank else "history.jsonl")
        # What is lost on a full disk is a line of a status.
        with OptionalWrites(f"the history {file}", "The job continues without it").attempt():
            # A newline first where a kill has cut the last line short.
            before = file.read_bytes()[-1:] if file.is_file() else b""
            text = "" if before in (b"", b"\n") else "\n"
            with file.open("a", encoding="utf-8") as opened:
                opened.write(text + to_json_line(line))

    def read(self, crashes: Sequence["Event"] = ()) -> list[Event]:
        """Everything so far, oldest first; a line that a kill cut short is left out.

        Args:
            crashes: What batch scripts wrote elsewhere (:func:`read_crashes`).
        """
        return sorted([*self._events(), *crashes], key=lambda event: event.time)

    def _events(self) -> Iterator[Event]:
        for file in self.folder.glob("history*.jsonl"):
            yield from typed_lines(Event, file.read_text("utf-8", "replace").splitlines())


def read_crashes(file: Path, job: str) -> list[Event]:
    """What a batch script noted: one line a crash, its exit code and the time in seconds."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text().splitlines():
        code, _, when = line.partition(" ")
        if code.isdigit() and when.isdigit():
            # The script's clock has whole seconds; what the processes said came before.
            found.append(Event("crashed", job, int(when) + 1.0, code=int(code)))
    return found


@dataclass(frozen=True)
class Restart:
    """One start after the first."""

    time: float
    step: int
    """Updates it went on from."""
    why: str


def restarts(events: Sequence[Event]) -> list[Restart]:
    """Every start after the first, and what ended the one before."""
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
    """What ended a start, from what happened after it."""
    kinds = {event.kind: event for event in reversed(events)}  # the first of each
    if "completed" in kinds:
        return "it was complete"
    if "cancelled" in kinds:
        return "cancelled"
    failure, stopped = first_failure(events), kinds.get("stopped")
    # When one process has failed, srun asks the others to stop.
    if stopped is not None and (failure is None or stopped.time <= failure.time):
        return f"asked to stop ({stopped.text}), saved at update {stopped.step:,}"
    if (event := kinds.get("refused")) is not None:
        return f"refused: {event.text}"
    if failure is not None:
        return f"crashed: rank {failure.rank}: {failure.text}"
    if (event := kinds.get("crashed")) is not None:
        return f"crashed: {describe_code(event.code)}"
    return "ended without a word: a failed node, or a kill"


# What a rank says when another one has gone.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")


def first_failure(events: Sequence[Event]) -> Event | None:
    """The error that came first, and is no echo of another rank's end; None where all are."""
    own = [
        event
        for event in events
        if event.kind == "failed" and not any(echo in event.text for echo in _ECHOES)
    ]
    return min(own, key=lambda event: event.time, default=None)


def describe_code(code: int) -> str:
    """An exit code, for a person."""
    if code == 137:
        return "a process was killed (SIGKILL: by hand, or out of memory)"
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
