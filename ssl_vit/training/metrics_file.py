"""Reading and mending `metrics.jsonl`. Apart from the writer so that it needs no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_vit.files import replacing


def cut_after(file: Path, step: int) -> None:
    """Drop lines of later updates, and a line that a kill cut short, so that every update stands
    there once.
    """
    if not file.is_file():
        return
    kept = [line for line in _lines(file) if _step_of(line) <= step]
    with replacing(file) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def count_until(file: Path, step: int) -> int:
    """Lines of updates up to this one; 0 where there is no such file."""
    return sum(_step_of(line) <= step for line in _lines(file)) if file.is_file() else 0


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in _lines(file)]


def lines_with(file: Path, name: str) -> Iterator[dict[str, Any]]:
    """Those that say something of ``name``, one after the other; the others are not parsed, since
    all of a long run's are gigabytes as objects.
    """
    return (json.loads(line) for line in _lines(file) if f'"{name}":' in line)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
