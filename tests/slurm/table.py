"""The table of docs/reliability.md: what each fault cost, printed where the tests end.

Rows travel in the reports of the tests, since pytest-xdist runs those in other processes; and the
conftest.py of this folder is not loaded where the summary is printed.
"""

from collections.abc import Iterable, Iterator
from typing import Any

TABLE: list[tuple[str, int, float]] = []
"""Fault, updates made again, seconds until training went on; of this process."""

ROW = "row of docs/reliability.md"
"""The name of a report's property that is one."""


def rows(reports: Iterable[Any]) -> Iterator[tuple[str, int, float]]:
    """Those in reports of teardowns, which have all that a test added."""
    for report in reports:
        if report.when == "teardown":
            yield from (row for name, row in report.user_properties if name == ROW)
