"""Run folders, checkpoints, configs and exports of earlier versions read as before.

`v0_1_0/` was written by version 0.1.0 (before `backbone.name`, and with the earlier names of four
settings): a smoke run of MAE and one of DINOv2 on synthetic images, with the checkpoint after 10 of
20 steps, the metrics of all 20, the last export, and the class tokens that it gave for fixed
images.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ssl_vit
from ssl_vit.exports.folder import read_export_info
from ssl_vit.recipes import read_config
from ssl_vit.run.folder import RunFolder
from tests.command_line import losses
from tests.command_line import ssl_vit as command

EARLIER = Path(__file__).parent / "v0_1_0"
NAMES = ("mae", "dino")


@pytest.fixture(params=NAMES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER / request.param, tmp_path / request.param)


def test_settings_have_their_values_under_todays_names() -> None:
    config = RunFolder(EARLIER / "dino").read_config()
    assert config.objective.name == "dino"
    assert config.objective.patch_embed_lr_scale == 0.3
    assert config.objective.warmup_teacher_temperature == 0.03
    assert config.objective.grayscale == 0.3
    assert config.monitor.labeled_images == 1000
    assert config.backbone.name == "vit"


def test_a_run_is_continued_from_its_checkpoint_with_the_same_losses(run: Path) -> None:
    expected = losses(run)
    assert len(expected) == 20
    done = command("pretrain", run / "config.yaml", "--run", run)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stderr
    found = losses(run)
    assert [(step, digest) for step, _, digest in found] == [(s, d) for s, _, d in expected]
    assert [loss for _, loss, _ in found] == pytest.approx([x for _, x, _ in expected], rel=1e-4)


def test_an_export_gives_the_same_features(run: Path) -> None:
    assert read_export_info(run).backbone == RunFolder(run).read_config().backbone
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    with torch.no_grad():
        found = ssl_vit.load_backbone(run)(images).cls
    expected = torch.tensor(json.loads((run / "cls.json").read_text()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_begins_from_an_earlier_one(run: Path, tmp_path: Path) -> None:
    words = (f"resume_from={run}", "schedule.length=2", "schedule.warmup=1")
    done = command("pretrain", run / "config.yaml", "--run", tmp_path / "new", *words)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "new")) == 2


def test_earlier_names_are_read_with_one_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_vit.overrides._noted", set())
    words = ["objective.stem_rate=0.4", "monitor={labelled_images: 500}"]
    config = read_config(str(EARLIER / "dino"), words, is_smoke=False)
    assert config.objective.name == "dino"
    assert config.objective.patch_embed_lr_scale == 0.4
    assert config.monitor.labeled_images == 500
    said = capsys.readouterr().err
    assert said.count("note: renamed settings:") == 1
    assert "objective.grey is now objective.grayscale" in said
    assert said.count("objective.stem_rate is now") == 1
