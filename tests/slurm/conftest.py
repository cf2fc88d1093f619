"""Fixtures of the tests on a real Slurm: the cluster, shards, and an uninterrupted run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.jobs import run_unbroken
from tests.slurm.table import ROW, TABLE
from tests.synthetic import write_shards


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Eight nodes, with accounting."""
    found = SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=8, enforce_accounts=True)
    try:
        found.start()
    except SlurmUnavailable as reason:
        # CI installs Slurm, and must not skip these tests.
        if "SSL_VIT_NEEDS_SLURM" in os.environ:
            raise
        pytest.skip(str(reason))
    yield found
    found.stop()


@pytest.fixture
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for a cluster of one test; `tmp_path` is too long for sockets."""
    return tmp_path_factory.mktemp("slurm")


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
    """Attach the rows that a test adds to the table to its report."""
    before = len(TABLE)
    yield
    for row in TABLE[before:]:
        record_property(ROW, row)
