"""Runs of tokenizers and of BEiT: killed, at every ZeRO stage, over processes and micro-batches."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_vit.errors import UserError
from ssl_vit.exports.folder import find_export
from ssl_vit.exports.loading import load_tokenizer
from ssl_vit.recipes import find_recipe
from ssl_vit.run.folder import RunFolder
from tests.command_line import losses, ssl_vit, torchrun
from tests.training.test_resume import interrupt

TOKENIZER = ("pretrain", "tokenizer_pixels_small_data", "--smoke", "--run")
BEIT = ("pretrain", "beit2_vitb16", "--smoke", "--run")
# Codes start early and die often enough to be replaced.
CODES = ("objective.codebook_start=0.1", "objective.dead_below=0.5")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tokenizer"
    done = ssl_vit(*TOKENIZER, run, f"data.shards={shards}", *CODES)
    assert done.returncode == 0, done.stderr
    assert f"objective.tokenizer={run}" in done.stdout  # what to do with it
    return run


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory, shards: Path, tokenizer: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "beit"
    done = ssl_vit(*BEIT, run, f"data.shards={shards}", f"objective.tokenizer={tokenizer}")
    assert done.returncode == 0, done.stderr
    return run


def codebook(run: Path) -> torch.Tensor:
    return load_file(find_export(run) / "tokenizer.safetensors")["codebook.vectors"]


def assert_same_losses(run: Path, unbroken: Path, abs: float = 2e-5) -> None:
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=abs)


def test_a_killed_tokenizer_goes_on_with_the_same_codes(
    shards: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = (f"data.shards={shards}", *CODES)
    assert interrupt(run, signal.SIGKILL, *words, command=TOKENIZER) == -signal.SIGKILL
    done = ssl_vit(*TOKENIZER, run, *words)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stderr
    assert losses(run) == losses(tokenizer)
    assert torch.equal(codebook(run), codebook(tokenizer))


def test_two_processes_killed_and_resumed_on_one_have_the_same_codes(
    shards: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """And other ZeRO stages and micro-batches before and after."""
    run, words = tmp_path / "run", (f"data.shards={shards}", *CODES)
    changes = ("engine.zero_stage=2", "engine.micro_batch_size=2")
    done = torchrun(2, *TOKENIZER, run, *words, *changes)
    assert done.returncode == 0, done.stderr
    assert_same_losses(run, tokenizer)
    torch.testing.assert_close(codebook(run), codebook(tokenizer), atol=1e-4, rtol=0)
    # As if it had been killed after step 15.
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    shutil.rmtree(run / "exports")
    done = ssl_vit(*TOKENIZER, run, *words, "engine.zero_stage=3", "engine.micro_batch_size=8")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 15" in done.stderr
    assert_same_losses(run, tokenizer)
    torch.testing.assert_close(codebook(run), codebook(tokenizer), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", [0, 3])
def test_beit_has_the_same_losses_at_other_zero_stages(
    stage: int, shards: Path, tokenizer: Path, beit: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = (f"data.shards={shards}", f"objective.tokenizer={tokenizer}")
    more = (f"engine.zero_stage={stage}", "backbone.drop_path=0")
    done = ssl_vit(*BEIT, run, *words, *more)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "other"
    done = ssl_vit(*BEIT, other, *words, "backbone.drop_path=0", "engine.micro_batch_size=8")
    assert done.returncode == 0, done.stderr
    assert_same_losses(run, other)


def test_beit_goes_on_with_a_tokenizer_that_moved_and_with_no_other(
    shards: Path, tokenizer: Path, beit: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(beit, run)
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    shutil.rmtree(run / "exports")
    shutil.copytree(find_export(tokenizer), moved)
    done = ssl_vit(*BEIT, run, f"data.shards={shards}", f"objective.tokenizer={moved}")
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(beit)
    weights = moved / "tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    done = ssl_vit(*BEIT, run, f"data.shards={shards}", f"objective.tokenizer={moved}")
    assert done.returncode == 2
    assert "has another network than the one" in done.stderr


def test_no_checkpoint_and_no_export_holds_the_tokenizer(beit: Path) -> None:
    for file in beit.rglob("*.safetensors"):
        assert not any("tokenizer" in name for name in load_file(file)), file
    assert {path.name for path in find_export(beit).iterdir()} == {
        "backbone.json",
        "backbone.safetensors",
    }


def test_clusters_of_a_run_read_pixels_as_that_run_does(
    shards: Path, beit: Path, tmp_path: Path
) -> None:
    """Backbone and normalization are the teacher's; killed, it goes on with the same codes."""
    words = (
        *(f"data.shards={shards}", "objective.target=kmeans", "objective.decoder_depth=0"),
        f"objective.teacher={beit}",
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = ssl_vit(*TOKENIZER, whole, *words)
    assert done.returncode == 0, done.stderr
    assert "data.pixel_mean and data.pixel_std are taken from objective.teacher" in done.stderr
    ours, theirs = RunFolder(whole).read_config(), RunFolder(beit).read_config()
    assert ours.backbone == theirs.backbone
    assert ours.data.pixel_mean == theirs.data.pixel_mean
    assert ours.data.pixel_mean != find_recipe("tokenizer_pixels_small_data").data.pixel_mean
    exported, given = (
        load_file(find_export(each) / "backbone.safetensors") for each in (whole, beit)
    )
    assert all(torch.equal(exported[name], value) for name, value in given.items())
    assert interrupt(run, signal.SIGKILL, *words, command=TOKENIZER) == -signal.SIGKILL
    done = ssl_vit(*TOKENIZER, run, *words)
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(whole)
    assert torch.equal(codebook(run), codebook(whole))


def test_a_run_keeps_its_tokenizer_while_that_run_writes_newer_exports(
    shards: Path, tokenizer: Path, beit: Path, tmp_path: Path
) -> None:
    run, newer = tmp_path / "run", tmp_path / "tokenizer"
    shutil.copytree(beit, run)
    shutil.copytree(tokenizer, newer)
    shutil.rmtree(run / "exports")
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    later = newer / "exports" / "step_00000040"
    shutil.copytree(find_export(newer), later)
    weights = load_file(later / "tokenizer.safetensors")
    weights["codebook.vectors"] = -weights["codebook.vectors"]
    save_file(weights, later / "tokenizer.safetensors")
    words = (f"data.shards={shards}", f"objective.tokenizer={newer}")
    done = ssl_vit(*BEIT, run, *words)
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(beit)
    assert "step_00000020" in RunFolder(run).read_config().objective.tokenizer  # type: ignore[union-attr]
    done = ssl_vit(*BEIT, tmp_path / "other", *words, f"resume_from={beit}")
    assert done.returncode == 2
    assert "was trained with another objective.tokenizer" in done.stderr


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        ((), "objective.tokenizer is not given", "ssl-vit pretrain tokenizer_pixels_small_data"),
        (("objective.tokenizer=s3://set/tok",), "is a URL", "download it"),
        (("objective.tokenizer=nowhere",), "no export at nowhere", "give a run folder"),
    ],
)
def test_without_a_tokenizer_beit_says_how_to_make_one(
    words: tuple[str, ...], problem: str, remedy: str, shards: Path, tmp_path: Path
) -> None:
    done = ssl_vit(*BEIT, tmp_path / "run", f"data.shards={shards}", *words)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert problem in said[0]
    assert remedy in said[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": {"num": 0, "dim": 8, "is_projected": True}}, "codes.num"),
        ({"codes": {"num": 99, "dim": 8, "is_projected": True}}, "described as (99, 8)"),
        ({"codes": {"num": 16, "dim": 8, "is_projected": False}}, "codes of 8 dimensions"),
        ({"pixel_std": [0.0, 0.0, 0.0]}, "pixel_std"),
        ({"format": "other"}, "is not in the format"),
    ],
)
def test_a_tokenizer_that_is_not_as_described_is_refused(
    change: dict[str, Any], said: str, shards: Path, tokenizer: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(find_export(tokenizer), given)
    info = given / "tokenizer.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    words = (f"data.shards={shards}", f"objective.tokenizer={given}")
    done = ssl_vit(*BEIT, tmp_path / "run", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder.norm.weight", float("nan"), "values that are not finite"),
        ("encoder.norm.weight", None, "1 tensors are missing"),
        ("codebook.started", 0.0, "before its codes were placed"),
    ],
)
def test_weights_that_make_no_tokens_are_refused(
    name: str, value: float | None, said: str, tokenizer: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(find_export(tokenizer), given)
    weights = load_file(given / "tokenizer.safetensors")
    if value is None:
        del weights[name]
    else:
        weights[name].fill_(value)
    save_file(weights, given / "tokenizer.safetensors")
    with pytest.raises(UserError, match=said):
        load_tokenizer(given)


def test_a_backbone_is_not_a_tokenizer(shards: Path, beit: Path, tmp_path: Path) -> None:
    words = (f"data.shards={shards}", f"objective.tokenizer={beit}")
    done = ssl_vit(*BEIT, tmp_path / "run", *words)
    assert done.returncode == 2
    assert "has no tokenizer" in done.stderr
