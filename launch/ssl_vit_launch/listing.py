"""`ssl-vit launch list`: all runs of a folder in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ssl_vit.errors import UserError
from ssl_vit.files import readable
from ssl_vit.foreign import Count, Document, checked, read_json
from ssl_vit.units import format_seconds
from ssl_vit_launch.status import RunStatus, read_status
from ssl_vit_launch.submission import find_runs

HEADINGS = ("run", "state", "steps", "loss", "images/s", "ETA", "restarts", "evaluations")


def table_of(runs: Sequence[Path], folder: Path) -> list[tuple[str, ...]]:
    """One row per run, without headings; for a damaged run, the problem."""
    rows = []
    for run in runs:
        name = str(run.relative_to(folder)) if run != folder else run.name
        try:
            status = read_status(run)
        except UserError as error:
            rows.append((name, f"damaged: {error.problem}", *[""] * (len(HEADINGS) - 2)))
            continue
        left, progress = status.seconds_left, status.progress
        rows.append(
            (
                name,
                status.state,
                _progress(status),
                f"{progress.loss:.4f}" if progress and progress.loss is not None else "",
                f"{progress.images_per_second:,.0f}" if progress else "",
                format_seconds(left) if status.state == "running" and left is not None else "",
                str(len(status.restarts)) if status.restarts else "",
                _evaluations(run),
            )
        )
    return rows


def _progress(status: RunStatus) -> str:
    made = status.progress.step if status.progress else 0
    return f"{made:,}/{status.total_steps:,}" if status.total_steps else str(made)


class _Protocol(Document):
    name: str


class _Row(Document):
    accuracy: Annotated[float, Field(ge=0, le=1)]


class _Rows(Document):
    pretrained: Annotated[_Row, Field(alias="pre-trained")]


class _Result(Document):
    protocol: _Protocol
    step: Count
    rows: _Rows


def _evaluations(run: Path) -> str:
    """Newest accuracy of each protocol, such as `knn 74.2`."""
    newest: dict[str, tuple[int, float]] = {}
    for file in (run / "evals").glob("*.json"):
        try:
            result = checked(_Result, read_json(file, ""), "", "")
        except UserError:
            continue
        if result.step >= newest.get(result.protocol.name, (-1, 0.0))[0]:
            newest[result.protocol.name] = (result.step, result.rows.pretrained.accuracy)
    return ", ".join(f"{name} {100 * value[1]:.1f}" for name, value in sorted(newest.items()))


def print_table(folder: Path) -> None:
    """Print the table of a folder.

    Raises:
        UserError: It contains no run.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = table_of(find_runs(folder), folder)
    table = Table(box=SIMPLE, pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        if any(row[place] for row in rows):
            justify = "right" if heading in ("steps", "loss", "images/s", "ETA") else "left"
            table.add_column(heading, justify=justify)
    for row in rows:
        # Text, not markup: a run may be named `x[/y]`.
        cells = [Text(readable(cell)) for cell in row]
        table.add_row(*(cell for place, cell in enumerate(cells) if any(r[place] for r in rows)))
    # A table written to a file or pipe is not truncated.
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)
