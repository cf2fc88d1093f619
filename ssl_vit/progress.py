"""Progress of long work: how much is done, the rate, and the time left.

A bar if standard error is a terminal; otherwise, as in a cluster's logs, a plain line from time to
time.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from ssl_vit.units import format_seconds

PLAIN_EVERY_SECONDS = 15.0  # between two lines if there is no terminal

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far a loop is: done of total, rate, time left.

    Yields:
        A function to call with the number of units just done.
    """
    if sys.stderr.isatty():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _plain_lines(label, total, unit)


@contextlib.contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=total, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.1f} {unit}/s" if speed else "")

        yield advance


def _plain_lines(label: str, total: int, unit: str) -> Advance:
    began = printed = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        now = time.monotonic()
        if now - printed >= PLAIN_EVERY_SECONDS and done:
            printed = now
            rate = done / (now - began)
            eta = format_seconds((total - done) / rate)
            line = f"{label} {done:,}/{total:,} {unit}  {rate:,.1f} {unit}/s  ETA {eta}"
            print(line, file=sys.stderr, flush=True)

    return advance
