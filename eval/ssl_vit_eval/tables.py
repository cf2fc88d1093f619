"""The tables that an evaluation prints. No torch here."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ssl_vit_eval.metrics import ClassScore, Interval, wilson_interval
from ssl_vit_eval.results import KindResult, RowResult

_KINDS = {"cls": "class token", "mean": "patch mean", "pixels": "RGB ≤ 32×32"}
_LISTED_CLASSES = 20


def row_table(title: str, rows: Sequence[RowResult]) -> Table:
    """Every row and kind of feature, with the row's result in bold and with a star."""
    table = Table(title=Text(title), title_justify="left")
    has_held_out = any(kind.held_out is not None for row in rows for kind in row.kinds)
    table.add_column("features")
    table.add_column("kind")
    table.add_column("setting")
    if has_held_out:
        table.add_column("held-out %", justify="right")
    for name in ("test %", "balanced %", "macro-F1 %"):
        table.add_column(name, justify="right")
    for row in rows:
        for place, kind in enumerate(row.kinds):
            counts = kind is row.best
            cells = [row.name if place == 0 else "", _KINDS[kind.kind], kind.setting]
            if has_held_out:
                cells.append(_with_bounds(kind.held_out, kind.held_out_interval))
            cells += _test_cells(kind, counts)
            table.add_row(*cells, style="bold" if counts else "")
        table.add_section()
    return table


def class_table(
    classes: Sequence[ClassScore], title: str = "pre-trained features, per class"
) -> Table:
    """The scores per class; of many classes, those with the lowest recall."""
    tested = [each for each in classes if each.support]
    if len(tested) > _LISTED_CLASSES:
        title = (
            f"{title}: the {_LISTED_CLASSES} of {len(tested):,} with the lowest recall; the others "
            "are in the JSON"
        )
        tested = sorted(tested, key=lambda each: each.recall or 0.0)[:_LISTED_CLASSES]
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("test images", "recall %", "precision %", "F1 %"):
        table.add_column(name, justify="right")
    for each in tested:
        table.add_row(
            Text(each.name),
            f"{each.support:,}",
            _with_bounds(each.recall, each.recall_interval),
            percent(each.precision),
            percent(each.f1),
        )
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table at its full width: cut to a narrow terminal it would lose digits."""
    width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, width)
    console.print(table)


def percent(share: float | None) -> str:
    """A share in percent; a dash if there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def with_interval(num_right: int, num_images: int) -> str:
    """An accuracy in percent with its 95 % interval: `79.1 (75.9–82.0)`."""
    return _with_bounds(num_right / num_images, wilson_interval(num_right, num_images))


def _with_bounds(share: float | None, interval: Interval | None) -> str:
    if share is None or interval is None:
        return percent(share)
    return f"{percent(share)} ({percent(interval[0])}–{percent(interval[1])})"


def _test_cells(kind: KindResult, counts: bool) -> list[str]:
    star = " *" if counts else "  "
    if kind.scores is None:
        return [f"{percent(kind.accuracy)}{star}", "–", "–"]
    scores = kind.scores
    return [
        f"{_with_bounds(scores.accuracy, scores.interval)}{star}",
        percent(scores.balanced_accuracy),
        percent(scores.macro_f1),
    ]
