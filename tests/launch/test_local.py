"""A job on this machine: the same signals and restarts as on a cluster, without SLURM."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from ssl_vit_launch.local import find_local
from ssl_vit_launch.submission import Submission, events_of, newest_submission
from tests.command_line import losses, ssl_vit
from tests.slurm.jobs import LENGTH, SETTINGS, check_same, fault_environment, run_unbroken
from tests.slurm.processes import lives, wait_until
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    run_unbroken(run, shards)
    return run


def begin(run: Path, shards: Path, faults: dict[str, object], *words: str | Path) -> Submission:
    """Submit the run of these tests with two processes."""
    profile = run.parent / "here.yaml"
    profile.write_text(
        yaml.safe_dump({"scheduler": "local", "environment": fault_environment(faults)})
    )
    done = ssl_vit(
        *("launch", "submit", "mae_vits16", "--smoke", "--run", run, "--cluster", profile),
        *("--nodes", "2", *SETTINGS, f"data.shards={shards}", f"schedule.length={LENGTH}", *words),
    )
    assert done.returncode == 0, done.stderr
    found = newest_submission(run)
    assert found is not None
    assert f"job {found.job}: {run}" in done.stdout
    return found


def wait_for_update(run: Path, step: int) -> None:
    wait_until(f"update {step}", lambda: bool(made := losses(run)) and made[-1][0] >= step)


def wait_for_end(submission: Submission) -> str:
    wait_until("the job is over", lambda: find_local(submission).is_over)
    return find_local(submission).state


def rank_of(run: Path, rank: int) -> int:
    """Process id of a rank."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
            environment = (file.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = b"ssl_vit_launch.job" in words and str(run).encode() in words
        if ours and f"RANK={rank}".encode() in environment and lives(int(file.parent.name)):
            return int(file.parent.name)
    raise AssertionError(f"rank {rank} is not there")


@pytest.mark.parametrize("whom", ["the job", "a process"])
def test_sigterm_in_the_middle_saves_and_starts_again(
    tmp_path: Path, shards: Path, unbroken: Path, whom: str
):
    run = tmp_path / "a run"
    submission = begin(run, shards, {"pause": 0.3})
    wait_for_update(run, 20)
    in_use = ssl_vit("launch", "resubmit", run)
    assert in_use.returncode == 2
    assert f"its job {submission.job} is RUNNING" in in_use.stderr
    os.kill(int(submission.job) if whom == "the job" else rank_of(run, 1), signal.SIGTERM)
    assert wait_for_end(submission) == "COMPLETED"
    check_same(run, unbroken)
    starts = [event for event in events_of(run) if event.kind == "started"]
    assert len(starts) == 2
    assert starts[1].step >= 20  # nothing was lost
    status = ssl_vit("launch", "status", run).stdout
    assert "complete" in status
    assert "saved at step" in status
    assert "SLURM is not" not in status


def test_a_killed_process_loses_only_the_steps_after_the_last_checkpoint(
    tmp_path: Path, shards: Path, unbroken: Path
):
    run = tmp_path / "run"
    submission = begin(run, shards, {"pause": 0.05})
    wait_for_update(run, 20)
    os.kill(rank_of(run, 1), signal.SIGKILL)
    assert wait_for_end(submission) == "COMPLETED"
    check_same(run, unbroken)
    assert "crashed: a process was killed" in ssl_vit("launch", "status", run).stdout


def test_crashes_without_progress_end_the_job_and_show_the_error(tmp_path: Path, shards: Path):
    run = tmp_path / "run"
    submission = begin(run, shards, {"crash": 3})
    assert wait_for_end(submission) == "FAILED"
    assert len([event for event in events_of(run) if event.kind == "started"]) == 3
    status = ssl_vit("launch", "status", run).stdout
    assert "crashed: rank 1: RuntimeError: a test's fault at step 3" in status
    assert f"from {submission.log(1)}:" in status


def test_cancel_saves_and_resubmit_resumes_with_fewer_processes(
    tmp_path: Path, shards: Path, unbroken: Path
):
    run = tmp_path / "run"
    submission = begin(run, shards, {"pause": 0.3})
    wait_for_update(run, 10)
    done = ssl_vit("launch", "cancel", run)
    assert done.returncode == 0, done.stderr
    assert wait_for_end(submission) == "CANCELLED"
    made = losses(run)[-1][0]
    again = ssl_vit("launch", "resubmit", run, "--nodes", "1", "--from-snapshot", "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    check_same(run, unbroken)
    starts = [event for event in events_of(run) if event.kind == "started"]
    assert starts[1].step == made
    environment = json.loads((run / "environment.json").read_text())
    assert [start["world_size"] for start in environment["starts"]] == [2, 1]
    assert "jobs/001/code" in environment["starts"][1]["command"][0]
    assert "commit" not in environment["starts"][1]  # none of the code came from the checkout
    refused = ssl_vit("launch", "cancel", run)
    assert refused.returncode == 2
    assert "is COMPLETED" in refused.stderr


def test_a_sweep_trains_and_evaluates_its_runs_in_turn(tmp_path: Path, shards: Path):
    test_set = write_shards(tmp_path / "test", per_class=12)
    done = ssl_vit(
        *("launch", "sweep", "mae_vits16", "--smoke", "--run", tmp_path / "sweep", "--wait"),
        *("--then", f"eval knn --train {shards} --test {test_set}", f"data.shards={shards}"),
        *("schedule.length=4", "schedule.warmup=1", "seed=0,1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("complete") == 2
    assert done.stdout.count("knn ") == 2
    listed = ssl_vit("launch", "list", tmp_path / "sweep").stdout
    assert "seed=0" in listed
    assert "4/4" in listed


def test_logs_names_the_valid_ranks(tmp_path: Path, shards: Path):
    run = tmp_path / "run"
    begin(run, shards, {}, "--wait", "--profile")
    assert f"step {LENGTH}/{LENGTH}" in ssl_vit("launch", "logs", run, "--follow").stdout
    assert (run / "profile").is_dir()
    refused = ssl_vit("launch", "logs", run, "--rank", "2")
    assert refused.returncode == 2
    assert "--rank 0 to 1" in refused.stderr
    assert "was never submitted" in ssl_vit("launch", "logs", tmp_path / "none").stderr
