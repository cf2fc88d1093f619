"""Killed, stopped and resumed runs against an unbroken one, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ssl_vit.recipes import read_config
from ssl_vit.run.folder import RunFolder
from tests.command_line import PATIENCE, SMOKE, begin_ssl_vit, losses, ssl_vit, torchrun


def interrupt(
    run: Path, number: signal.Signals, *words: str, command: tuple[str, ...] = SMOKE
) -> int:
    """Begin a run, send a signal after 12 of its 20 updates; returns its exit code."""
    process = begin_ssl_vit(*command, run, *words)
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
    done = ssl_vit(*SMOKE, run, *words, "engine.workers=0")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stderr
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
    assert ssl_vit(*SMOKE, run, *words).returncode == 0
    assert losses(run) == losses(unbroken)
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["start_step"] for start in starts] == [0, made]


def test_elastic_a_run_goes_on_with_other_processes_stage_and_micro_batch(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}",)
    assert interrupt(run, signal.SIGKILL, *words, "engine.zero_stage=1") == -signal.SIGKILL
    done = torchrun(2, *SMOKE, run, *words, "engine.zero_stage=3", "engine.micro_batch_size=2")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stderr
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)


def test_a_folder_in_use_is_refused(shards: Path, unbroken: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "checkpoints")
    holder = RunFolder(run)
    holder.lock()
    done = ssl_vit(*SMOKE, run, f"data.shards={shards}")
    assert done.returncode == 2
    assert "another process is training" in done.stderr


def test_two_processes_with_sharded_gradients_give_the_losses_of_one(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    done = torchrun(2, *SMOKE, run, f"data.shards={shards}", "engine.zero_stage=2")
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(losses(run), losses(unbroken), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)


def test_a_complete_run_is_left_as_it_is(shards: Path, unbroken: Path):
    before = (unbroken / "metrics.jsonl").read_bytes()
    done = ssl_vit(*SMOKE, unbroken, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_the_run_folder_holds_everything_the_next_command_needs(unbroken: Path):
    found = {path.name for path in unbroken.iterdir()}
    assert {"config.yaml", "plan.json", "environment.json", "tensorboard", "exports"} <= found
    kept = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert kept == ["step_00000015", "step_00000020"]
    assert json.loads((unbroken / "plan.json").read_text())["total_steps"] == 20


@pytest.mark.parametrize("harm", ["shorter", "changed", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    harm: str, shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "exports")  # it is not complete without
    newest = run / "checkpoints" / "step_00000020"
    file = newest / "rank_00000.safetensors"
    if harm == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "changed":
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
    else:
        (newest / "manifest.json").unlink()
    done = ssl_vit(*SMOKE, run, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    assert str(newest) in done.stderr
    assert "using the previous checkpoint" in done.stderr
    assert "resuming at step 15" in done.stderr
    assert losses(run) == losses(unbroken)
    assert (run / "checkpoints" / "damaged_step_00000020").is_dir()


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew_unasked(
    shards: Path, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for file in run.glob("checkpoints/step_*/rank_00000.safetensors"):
        file.write_bytes(b"")
    done = ssl_vit(*SMOKE, run, f"data.shards={shards}")
    assert done.returncode == 2
    wrong, fix = done.stderr.strip().splitlines()[-2:]
    assert "no checkpoint in" in wrong
    assert "delete" in fix
    assert losses(run) == losses(unbroken)


def test_old_checkpoints_of_every_so_many_steps_are_kept(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    words = ("checkpoint.every_steps=2", "checkpoint.keep_last=1", "checkpoint.keep_every_steps=6")
    done = ssl_vit(*SMOKE, run, f"data.shards={shards}", *words)
    assert done.returncode == 0, done.stderr
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000012", "step_00000018", "step_00000020"]


def test_a_full_disk_costs_that_checkpoint_and_not_the_run(shards: Path, tmp_path: Path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    words = (f"data.shards={shards}", "checkpoint.every_steps=4", "checkpoint.keep_last=1")
    RunFolder(run).write_config(read_config("mae_vits16", words, is_smoke=True))
    (run / "checkpoints").symlink_to(disk)
    # A checkpoint of this model takes 1.6 MB: there is room for two, and for a moment three.
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, to make a small file system")
    try:
        (disk / "something else").write_bytes(bytes(1_500_000))
        done = ssl_vit(*SMOKE, run, *words)
        assert "could not be written" in done.stderr
        assert "Training continues" in done.stderr
        assert done.returncode == 2  # the last step could not be saved either
        assert "step 20 could not be saved" in done.stderr
        assert [path.name for path in disk.glob("step_*")] == ["step_00000004"]
        assert not list(disk.glob(".partial_*"))
        (disk / "something else").unlink()
        done = ssl_vit(*SMOKE, run, *words)
        assert done.returncode == 0, done.stderr
        assert "resuming at step 4" in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("seconds", [0.8, 1.6])
def test_a_signal_before_the_first_step_is_not_lost(
    seconds: float, shards: Path, unbroken: Path, tmp_path: Path
):
    run, words = tmp_path / "run", f"data.shards={shards}"
    process = begin_ssl_vit(*SMOKE, run, words)
    while not (run / ".lock").is_file():  # its checks are done, the slow part begins
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) in (0, 75)  # on a fast machine it was done
    assert ssl_vit(*SMOKE, run, words).returncode == 0
    assert losses(run) == losses(unbroken)


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_synthetic_samples_do_not_depend_on_the_micro_batch(micro_batch: int, tmp_path: Path):
    runs = []
    for size in (4, micro_batch):
        run = tmp_path / str(size)
        words = ("data.source=synthetic", f"engine.micro_batch_size={size}", "schedule.length=5")
        done = ssl_vit(*SMOKE, run, *words)
        assert done.returncode == 0, done.stderr
        runs.append(losses(run))
    for (_, ours, seen), (_, theirs, also_seen) in zip(*runs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert seen == also_seen
