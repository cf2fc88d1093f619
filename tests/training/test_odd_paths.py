"""Paths whose bytes are not UTF-8 train, resume and evaluate like any other."""

import os
from pathlib import Path

from ssl_vit.run.folder import RunFolder
from tests.command_line import SMOKE, losses, ssl_vit
from tests.synthetic import write_shards


def test_bytes_that_are_not_utf8(tmp_path: Path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    shards = write_shards(folder)
    words = (f"data.shards={shards}", "schedule.length=4", "schedule.warmup=1")
    words = (*words, "checkpoint.every_steps=2")
    run = folder / "run"
    done = ssl_vit(*SMOKE, run, *words)
    assert done.returncode == 0, done.stderr
    assert RunFolder(run).read_config().data.sources == (f"file://{tmp_path}/caf%E9/shards",)
    whole = losses(run)
    for newest in ("checkpoints", "exports"):
        (run / newest / "step_00000004").rename(tmp_path / newest)
    again = ssl_vit(*SMOKE, run, *words)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 2" in again.stderr
    assert losses(run) == whole
    other = ssl_vit(*SMOKE, tmp_path / "other", *words, f"resume_from={run}")
    assert other.returncode == 0, other.stderr
