"""Panels are drawn at ZeRO-3, where a forward pass releases the parameters it used."""

from pathlib import Path

import pytest

from tests.command_line import ssl_vit


@pytest.mark.parametrize(
    ("recipe", "panel"), [("simmim_vitb16", "reconstruction"), ("maskfeat_small_data", "hog")]
)
def test_masked_objectives_draw_panels_at_zero_3(
    recipe: str, panel: str, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = (f"data.shards={shards}", "engine.zero_stage=3", "schedule.length=2")
    done = ssl_vit("pretrain", recipe, "--smoke", "--run", run, *words, "schedule.warmup=0")
    assert done.returncode == 0, done.stderr
    assert list((run / "panels").glob(f"{panel}_*.png"))
