"""What tests of whole runs share: a set of shards, and a smoke run that nothing disturbs."""

from pathlib import Path

import pytest

from tests.command_line import SMOKE, ssl_vit
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    done = ssl_vit(*SMOKE, run, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    return run
