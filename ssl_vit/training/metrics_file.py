"""The run folder's files of JSON lines (metrics, alarms, bad samples, skipped steps), in which
every step is recorded once. No torch here.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ssl_vit.files import OptionalWrites, replacing, to_json_line
from ssl_vit.foreign import json_lines, typed_lines
from ssl_vit.monitors.collapse import Alarm

_MOST_WAITING = 16 * 2**20  # bytes


class AppendedLines:
    """A file that lines are appended to. If the disk is full, they are kept until there is space.

    Args:
        file: Created with the first line; lines of steps that will be repeated are removed.
        start_step: Number of steps already made.
        writes: Whether this rank writes; on other ranks nothing happens.
    """

    def __init__(self, file: Path, start_step: int, writes: bool = True) -> None:
        self.path, self.writes = file, writes
        if writes:
            cut_after(file, start_step)
        self._file: IO[bytes] | None = None
        self._waiting, self._lost = b"", 0
        self._effort = OptionalWrites(str(file), "Its lines are kept until there is space")

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append objects; each has its `step`."""
        if not self.writes:
            return
        added = "".join(to_json_line(line) for line in lines).encode()
        if len(self._waiting) + len(added) <= _MOST_WAITING:
            self._waiting += added
        else:
            self._lost += added.count(b"\n")
        if not self._waiting:
            return
        with self._effort.attempt():
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            while self._waiting:
                # A full disk accepts only a part; the rest is appended later.
                self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Write pending lines if there is space now, and close the file."""
        self.write(())
        if self._waiting or self._lost:
            count = self._waiting.count(b"\n") + self._lost
            print(f"{count:,} lines of {self.path} were lost", file=sys.stderr, flush=True)
        with self._effort.attempt():
            if self._file is not None:
                self._file.close()


def cut_after(file: Path, step: int) -> None:
    """Remove lines of later steps, and a line that a kill truncated, so that every step is recorded
    once.
    """
    if not file.is_file():
        return
    kept = [line for line in lines_of(file) if _step_of(line) <= step]
    with replacing(file) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def count_until(file: Path, step: int) -> int:
    """Number of lines of steps up to this one; 0 if there is no such file."""
    return sum(_step_of(line) <= step for line in lines_of(file))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; damaged ones are skipped."""
    return list(json_lines(lines_of(file)))


def read_alarms(file: Path) -> list[Alarm]:
    """The alarms in an `alarms.jsonl`, oldest first; a truncated line is skipped."""
    return list(typed_lines(Alarm, lines_of(file)))


def lines_with(file: Path, name: str) -> Iterator[dict[str, Any]]:
    """The lines that contain the key ``name``, one at a time; others are not parsed, because all
    lines of a long run would take gigabytes as objects.
    """
    return json_lines(line for line in lines_of(file) if f'"{name}":' in line)


def lines_of(file: Path) -> list[str]:
    """The lines of a file with their newlines; an empty list if there is no such file."""
    if not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _step_of(line: str) -> float:
    step = next((values.get("step") for values in json_lines([line])), None)
    return step if isinstance(step, int | float) else float("inf")
