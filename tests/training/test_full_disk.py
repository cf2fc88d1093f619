"""Where nothing can be written, a run lives, says so once, and ends as if nothing had been."""

from pathlib import Path

import pytest

from ssl_vit.training.checkpoint import complete_checkpoints
from tests.command_line import SMOKE, losses, ssl_vit
from tests.synthetic import write_shards

OFTEN = ("export.every_steps=2", "log.panel_every_steps=2", "log.every_steps=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def test_a_run_lives_without_what_it_can_do_without(shards: Path, tmp_path: Path):
    words = (f"data.shards={shards}", *OFTEN)
    unbroken = ssl_vit(*SMOKE, tmp_path / "unbroken", *words)
    assert unbroken.returncode == 0, unbroken.stderr
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("exports", "panels", "tensorboard"):
        (blocked / name).symlink_to("/dev/full")
    (blocked / "config.yaml").write_bytes((tmp_path / "unbroken" / "config.yaml").read_bytes())
    done = ssl_vit(*SMOKE, blocked, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for what in ("an export to", "panels in", "TensorBoard's files in"):
        assert done.stderr.count(f"cannot write {what}") == 1, done.stderr
    assert "the export of step" in done.stderr.splitlines()[-2]
    assert complete_checkpoints(blocked / "checkpoints")
    assert losses(blocked) == losses(tmp_path / "unbroken")
    for name in ("exports", "panels", "tensorboard"):
        (blocked / name).unlink()
    again = ssl_vit(*SMOKE, blocked, *words)
    assert again.returncode == 0, again.stderr
    assert list((blocked / "exports").glob("*/backbone.json"))
    assert losses(blocked) == losses(tmp_path / "unbroken")
