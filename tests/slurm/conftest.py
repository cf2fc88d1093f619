"""What the tests on a real Slurm share: the cluster, shards, and a run that nothing disturbed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.jobs import TABLE, run_unbroken
from tests.synthetic import write_shards

_ROW = "row of docs/reliability.md"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Eight nodes, with accounting."""
    found = SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=8, enforce_accounts=True)
    try:
        found.start()
    except SlurmUnavailable as reason:
        # The product's gate installs Slurm; there it is never skipped.
        if "SSL_VIT_NEEDS_SLURM" in os.environ:
            raise
        pytest.skip(str(reason))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """See `run_unbroken`."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    run_unbroken(run, shards)
    return run


@pytest.fixture(autouse=True)
def rows_in_report(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """What a test adds to the table goes with its report: pytest may run it in another process."""
    before = len(TABLE)
    yield
    for row in TABLE[before:]:
        record_property(_ROW, row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of docs/reliability.md."""
    ends = [report for report in terminalreporter.getreports("") if report.when == "teardown"]
    rows = [row for end in ends for name, row in end.user_properties if name == _ROW]
    if rows:
        terminalreporter.section("reliability: updates made again, seconds until training went on")
        for fault, updates, seconds in rows:
            terminalreporter.write_line(f"{fault:60} {updates:3} {seconds:6.1f}")
