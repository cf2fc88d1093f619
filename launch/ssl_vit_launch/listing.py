"""All runs of a folder in one table."""

import json
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.quantities import format_seconds
from ssl_vit_launch.status import RunStatus, read_status
from ssl_vit_launch.submission import find_runs

HEADINGS = ("run", "state", "updates", "loss", "images/s", "ETA", "restarts", "evaluations")


def table_of(runs: Sequence[Path], folder: Path) -> list[tuple[str, ...]]:
    """A row for each run, under a row of headings."""
    rows = []
    for run in runs:
        status = read_status(run)
        left, progress = status.seconds_left, status.progress
        name = str(run.relative_to(folder)) if run != folder else run.name
        rows.append(
            (
                name,
                status.state,
                _made(status),
                f"{progress.loss:.4f}" if progress and progress.loss is not None else "",
                f"{progress.images_per_second:,.0f}" if progress else "",
                format_seconds(left) if status.state == "running" and left is not None else "",
                str(len(status.restarts)) if status.restarts else "",
                _evaluations(run),
            )
        )
    return rows


def _made(status: RunStatus) -> str:
    made = status.progress.step if status.progress else 0
    return f"{made:,}/{status.total_steps:,}" if status.total_steps else str(made)


def _evaluations(run: Path) -> str:
    """The newest number of each protocol, such as `knn 74.2`."""
    newest: dict[str, tuple[int, float]] = {}
    for file in (run / "evals").glob("*.json"):
        try:
            result = json.loads(file.read_text())
            protocol, step = result["protocol"]["name"], result["step"]
            accuracy = result["rows"]["pre-trained"]["accuracy"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if step >= newest.get(protocol, (-1, 0.0))[0]:
            newest[protocol] = (step, accuracy)
    return ", ".join(f"{name} {100 * value[1]:.1f}" for name, value in sorted(newest.items()))


def print_table(folder: Path) -> None:
    """Print it.

    Raises:
        UserError: No run is in the folder.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    rows = table_of(find_runs(folder), folder)
    table = Table(box=SIMPLE, pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        if any(row[place] for row in rows):
            justify = "right" if heading in ("updates", "loss", "images/s", "ETA") else "left"
            table.add_column(heading, justify=justify)
    for row in rows:
        table.add_row(*(cell for place, cell in enumerate(row) if any(r[place] for r in rows)))
    # A table that goes into a file or a pipe is not cut.
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)
