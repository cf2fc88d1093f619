"""What every test shares: idle threads sleep, and torch takes two cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("OMP_NUM_THREADS", None)

import sys
from typing import TYPE_CHECKING

import pytest

from tests.slurm import table

if TYPE_CHECKING:
    from xdist.remote import Producer

    from tests.scheduling import WholeFiles


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """More threads than cores make tests slow and change nothing; tests without torch load none."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "WholeFiles":
    """How `pytest -n` shares the tests out."""
    from tests.scheduling import WholeFiles

    return WholeFiles(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What faults cost, where the tests on Slurm ran."""
    lines = [
        f"{fault:60} {updates:3} {seconds:6.1f}"
        for fault, updates, seconds in table.rows(terminalreporter.getreports(""))
    ]
    if lines:
        terminalreporter.section("reliability: steps repeated, seconds until training resumed")
        terminalreporter.write("\n".join(lines) + "\n")
