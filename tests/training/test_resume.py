"""Killed, stopped and resumed runs against an unbroken one, through the command line."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from ssl_vit.run_folder import RunFolder
from tests.command_line import begin_ssl_vit, losses, ssl_vit, torchrun
from tests.synthetic import write_shards

RECIPE = ("pretrain", "mae_vits16", "--smoke", "--run")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    done = ssl_vit(*RECIPE, run, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    return run


def interrupt(run: Path, number: signal.Signals, *words: str) -> int:
    """Begin a run, send a signal after 12 of its 20 updates; returns its exit code."""
    process = begin_ssl_vit(*RECIPE, run, *words)
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 12:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(number)
    # Not communicate(): that would wait for the data workers of a killed run too, as no user does.
    return process.wait()


@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_run_resumes_with_other_workers_as_if_nothing_had_been(
    stage: int, shards: Path, unbroken: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}", f"engine.zero_stage={stage}")
    assert interrupt(run, signal.SIGKILL, *words) == -signal.SIGKILL
    assert (run / "checkpoints" / "step_00000010").is_dir()
    done = ssl_vit(*RECIPE, run, *words, "engine.workers=0")
    assert done.returncode == 0, done.stderr
    assert "resuming at update 10" in done.stderr
    assert [step for step, _, _ in losses(run)] == list(range(1, 21))
    if stage == 1:
        assert losses(run) == losses(unbroken)
    else:
        for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
            assert ours[2] == theirs[2]
            assert ours[1] == pytest.approx(theirs[1], abs=1e-5)


def test_a_run_asked_to_stop_saves_says_so_and_resumes(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}",)
    assert interrupt(run, signal.SIGTERM, *words) == 75
    made = len(losses(run))
    assert 12 <= made < 20
    assert (run / "checkpoints" / f"step_{made:08d}").is_dir()
    assert ssl_vit(*RECIPE, run, *words).returncode == 0
    assert losses(run) == losses(unbroken)
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["start_step"] for start in starts] == [0, made]


def test_at_stage_0_a_run_goes_on_with_another_number_of_processes(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}", "engine.zero_stage=0")
    assert interrupt(run, signal.SIGTERM, *words) == 75
    done = torchrun(2, *RECIPE, run, *words)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)


def test_a_sharded_checkpoint_is_not_given_to_another_number_of_processes(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    newest = run / "checkpoints" / "step_00000020" / "manifest.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"world_size": 4}))
    done = ssl_vit(*RECIPE, run, f"data.shards={shards}")
    assert done.returncode == 2
    assert "sharded over 4 processes" in done.stderr
    assert "go on with 4 processes" in done.stderr


def test_a_folder_in_use_is_refused(shards: Path, unbroken: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "checkpoints")
    holder = RunFolder(run)
    holder.lock()
    done = ssl_vit(*RECIPE, run, f"data.shards={shards}")
    assert done.returncode == 2
    assert "another process is training" in done.stderr


def test_two_processes_with_sharded_gradients_give_the_losses_of_one(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    done = torchrun(2, *RECIPE, run, f"data.shards={shards}", "engine.zero_stage=2")
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)


def test_a_complete_run_is_left_as_it_is(shards: Path, unbroken: Path):
    before = (unbroken / "metrics.jsonl").read_bytes()
    done = ssl_vit(*RECIPE, unbroken, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_the_run_folder_holds_everything_the_next_command_needs(unbroken: Path):
    found = {path.name for path in unbroken.iterdir()}
    assert {"config.yaml", "plan.json", "environment.json", "tensorboard", "exports"} <= found
    kept = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert kept == ["step_00000015", "step_00000020"]
    assert json.loads((unbroken / "plan.json").read_text())["total_steps"] == 20


def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    for part in unbroken.iterdir():
        if part.name != "tensorboard":
            (run / part.name).symlink_to(part) if part.name != "checkpoints" else None
    newest = run / "checkpoints" / "step_00000020"
    newest.mkdir(parents=True)
    (newest / "manifest.json").write_text(
        json.dumps({"world_size": 1, "files": {"deepspeed/weights.pt": 10}})
    )
    done = ssl_vit(*RECIPE, run, f"data.shards={shards}")
    assert done.returncode == 2
    first, second = done.stderr.strip().splitlines()
    assert "weights.pt" in first
    assert f"delete {newest}" in second
    assert newest.is_dir()
