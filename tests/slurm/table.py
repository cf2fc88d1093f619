"""The table of docs/reliability.md: the cost of each fault, printed at the end of the tests.

Rows are passed in the reports of the tests, since pytest-xdist runs those in other processes, and
the conftest.py of this folder is not loaded where the summary is printed.
"""

from collections.abc import Iterable, Iterator
from typing import Any

TABLE: list[tuple[str, int, float]] = []
"""Fault, repeated steps, seconds until training continued; of this process."""

ROW = "row of docs/reliability.md"
"""Name of the report property that holds a row."""


def rows(reports: Iterable[Any]) -> Iterator[tuple[str, int, float]]:
    """Rows in the reports of teardowns, which contain everything that a test added."""
    for report in reports:
        if report.when == "teardown":
            yield from (row for name, row in report.user_properties if name == ROW)
