"""What the tests on a real Slurm share: the cluster, shards, and a run that nothing disturbed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.jobs import TABLE, run_unbroken
from tests.synthetic import write_shards


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of docs/reliability.md."""
    if TABLE:
        terminalreporter.section("reliability: updates made again, seconds until training went on")
        for fault, updates, seconds in TABLE:
            terminalreporter.write_line(f"{fault:60} {updates:3} {seconds:6.1f}")
