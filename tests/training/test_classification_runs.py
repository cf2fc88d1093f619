"""Runs with labels: killed, at every ZeRO stage, from a pre-trained backbone on larger crops."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_vit.exports.folder import find_export, read_classifier_info
from ssl_vit.exports.loading import load_backbone
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.pretrain import is_complete
from tests.command_line import losses, ssl_vit, torchrun
from tests.training.test_resume import interrupt

FINETUNE = ("pretrain", "finetune_mae_vitb16", "--smoke", "--run")
AVERAGED = ("objective.ema_momentum=0.9", "objective.class_weights=auto")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    done = ssl_vit(*FINETUNE, run, f"data.shards={shards}", *AVERAGED)
    assert done.returncode == 0, done.stderr
    assert "2 classes: a 24, b 24" in done.stderr
    return run


def validations(run: Path) -> list[dict[str, float]]:
    return list(map(json.loads, (run / "validations.jsonl").read_text().splitlines()))


def classifier(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_export(run) / "classifier.safetensors")


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    """With augmentations, mixed images, and an average of the weights."""
    run, words = tmp_path / "run", (f"data.shards={shards}", *AVERAGED)
    assert interrupt(run, signal.SIGKILL, *words, command=FINETUNE) == -signal.SIGKILL
    done = ssl_vit(*FINETUNE, run, *words)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stderr
    assert losses(run) == losses(unbroken)
    ours, theirs = classifier(run), classifier(unbroken)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_has_the_same_losses(
    stage: int, shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stage_words = (f"engine.zero_stage={stage}", "engine.zero3_whole_below=0")
    done = ssl_vit(*FINETUNE, run, f"data.shards={shards}", *AVERAGED, *stage_words)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert ours[1] == pytest.approx(theirs[1], abs=2e-5)
    ours, theirs = classifier(run), classifier(unbroken)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=0)


def test_two_processes_validate_together(shards: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = ("engine.zero_stage=3", "engine.zero3_whole_below=0")
    done = torchrun(2, *FINETUNE, run, f"data.shards={shards}", *AVERAGED, *stage)
    assert done.returncode == 0, done.stderr
    ours, theirs = validations(run), validations(unbroken)
    assert [each["step"] for each in ours] == [5, 10, 15, 20]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["validation/loss"] == pytest.approx(other["validation/loss"], abs=1e-4)


def test_early_stopping_keeps_the_step_that_the_log_says_was_best(
    shards: Path, tmp_path: Path
) -> None:
    """And a kill on the way changes nothing."""
    words = (f"data.shards={shards}", "schedule.length=200", "objective.patience=2")
    words = (*words, "log.every_steps=4")  # most validations have no line of their own
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = ssl_vit(*FINETUNE, whole, *words)
    assert done.returncode == 0, done.stderr
    found = validations(whole)
    best, since = found[0], 0
    for each in found[1:]:
        ranks = [
            (line["validation/balanced_accuracy"], -line["validation/loss"])
            for line in (each, best)
        ]
        best, since = (each, 0) if ranks[0] > ranks[1] else (best, since + 1)
    assert since == 2
    last = found[-1]["step"]
    assert last < 200
    assert f"stopping: validation was best at step {best['step']}" in done.stderr
    export = find_export(whole)
    assert export.name == f"step_{last:08d}"
    assert read_classifier_info(export).step == best["step"]
    assert RunFolder(whole).total_steps() == last
    assert is_complete(RunFolder(whole), 200)
    assert "next: ssl-vit eval classifier" in done.stdout
    again = ssl_vit(*FINETUNE, whole, *words)
    assert again.returncode == 0, again.stderr
    assert validations(whole) == found
    assert interrupt(run, signal.SIGKILL, *words, command=FINETUNE) == -signal.SIGKILL
    done = ssl_vit(*FINETUNE, run, *words)
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(whole)
    assert find_export(run).name == export.name
    ours, theirs = classifier(run), classifier(whole)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_pretrained_backbone_goes_on_at_a_higher_resolution(shards: Path, tmp_path: Path) -> None:
    pretrained, run = tmp_path / "mae", tmp_path / "run"
    done = ssl_vit(
        "pretrain", "mae_vitb16", "--smoke", "--run", pretrained, f"data.shards={shards}"
    )
    assert done.returncode == 0, done.stderr
    export = find_export(pretrained)
    theirs = load_backbone(export)
    height, width = theirs.config.height_width
    words = (
        f"data.shards={shards}",
        f"resume_from={export}",
        f"backbone.image_size=[{2 * height},{3 * width}]",
        "optimizer.base_learning_rate=1e-30",
        "optimizer.final_learning_rate=0",
        "optimizer.weight_decay=0",
        "optimizer.final_weight_decay=0",
    )
    done = ssl_vit(*FINETUNE, run, *words)
    assert done.returncode == 0, done.stderr
    ours = load_backbone(run)
    assert ours.config.height_width == (2 * height, 3 * width)
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        # A table that follows from the grid, and the norm, which is the head's.
        if name != "pos_embed" and not name.startswith("norm."):
            torch.testing.assert_close(state[name], value, atol=1e-12, rtol=0)


def test_images_cannot_be_mixed_in_micro_batches_of_one(shards: Path, tmp_path: Path) -> None:
    words = (f"data.shards={shards}", "engine.micro_batch_size=1")
    done = ssl_vit(*FINETUNE, tmp_path / "run", *words)
    assert done.returncode == 2
    assert "a micro-batch of one image" in done.stderr


def test_a_run_starts_with_the_probe_of_its_frozen_backbone(shards: Path, tmp_path: Path) -> None:
    """On one process and on two, and not again after a kill."""
    still = ("optimizer.base_learning_rate=1e-30", "optimizer.final_learning_rate=0")
    words = (f"data.shards={shards}", "objective.head=probe", *still)
    whole, pair = tmp_path / "whole", tmp_path / "pair"
    done = ssl_vit(*FINETUNE, whole, *words)
    assert done.returncode == 0, done.stderr
    assert "head: a linear probe of 88 views of 44 training images" in done.stderr
    done = torchrun(2, *FINETUNE, pair, *words, "engine.zero_stage=3", "engine.zero3_whole_below=0")
    assert done.returncode == 0, done.stderr
    ours, theirs = classifier(pair), classifier(whole)
    assert ours["head.weight"].abs().max() > 1e-3  # not the small start
    for name in ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
    run, moving = tmp_path / "run", words[:2]
    assert interrupt(run, signal.SIGKILL, *moving, command=FINETUNE) == -signal.SIGKILL
    done = ssl_vit(*FINETUNE, run, *moving)
    assert done.returncode == 0, done.stderr
    assert "linear probe" not in done.stderr
    unbroken = tmp_path / "unbroken"
    assert ssl_vit(*FINETUNE, unbroken, *moving).returncode == 0
    assert losses(run) == losses(unbroken)
