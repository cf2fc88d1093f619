"""What the tests on a real Slurm share: the cluster, shards, and a run that nothing disturbed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import ssl_vit
from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.jobs import LENGTH, SETTINGS, TABLE
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
    """The run of all these tests, by hand and to its end."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    words = (*SETTINGS, f"data.shards={shards}", f"schedule.length={LENGTH}")
    done = ssl_vit("pretrain", "mae_vits16", "--smoke", "--run", run, *words)
    assert done.returncode == 0, done.stderr
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of docs/reliability.md."""
    if TABLE:
        terminalreporter.section("reliability: updates made again, seconds until training went on")
        for fault, updates, seconds in TABLE:
            terminalreporter.write_line(f"{fault:60} {updates:3} {seconds:6.1f}")
