"""Reading and mending `metrics.jsonl`. Apart from the writer so that it needs no torch."""

import json
from pathlib import Path
from typing import Any

from ssl_vit.files import replacing


def cut_after(file: Path, step: int) -> None:
    """Drop lines of later updates, and a line that a kill cut short, so that every update stands
    there once.
    """
    if not file.is_file():
        return
    kept = [line for line in file.read_text().splitlines(keepends=True) if _step_of(line) <= step]
    with replacing(file) as partial:
        partial.write_text("".join(kept))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
