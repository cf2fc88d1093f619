"""Reading and mending `metrics.jsonl`. Apart from the writer so that it needs no torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_vit.files import replacing
from ssl_vit.foreign import json_lines


def cut_after(file: Path, step: int) -> None:
    """Drop lines of later updates, and a line that a kill cut short, so that every update stands
    there once.
    """
    if not file.is_file():
        return
    kept = [line for line in lines_of(file) if _step_of(line) <= step]
    with replacing(file) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def count_until(file: Path, step: int) -> int:
    """Lines of updates up to this one; 0 where there is no such file."""
    return sum(_step_of(line) <= step for line in lines_of(file))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; damaged ones are left out."""
    return list(json_lines(lines_of(file)))


def lines_with(file: Path, name: str) -> Iterator[dict[str, Any]]:
    """Those that say something of ``name``, one after the other; the others are not parsed, since
    all of a long run's are gigabytes as objects.
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
