"""Checks before queueing, the files written, and what remains after a failure."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ssl_vit.errors import UserError
from ssl_vit_launch import checks
from ssl_vit_launch.checks import file_system
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.submission import newest_submission
from ssl_vit_launch.submit import Request, check, queue
from tests.command_line import ssl_vit
from tests.synthetic import write_shards

SHORT = ("schedule.length=4", "schedule.warmup=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def submit(request: Request) -> None:
    queue([check(request)], request, request.run)


def request_for(run: Path, shards: Path, **facts: object) -> Request:
    values: dict[str, object] = {
        "recipe": "mae_vits16",
        "run": run,
        "overrides": (f"data.shards={shards}", *SHORT),
        "is_smoke": True,
        "cluster": ClusterConfig(scheduler="local"),
        "nodes": 1,
        "min_nodes": 1,
    }
    return Request(**(values | facts))  # type: ignore[arg-type]


def test_missing_slurm_is_reported_before_anything_is_written(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="sbatch is not on PATH"):
        submit(request_for(tmp_path / "run", shards, cluster=ClusterConfig()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"nodes": 3, "min_nodes": 3}, "3 processes do not divide"),
        ({"nodes": 2, "min_nodes": 4}, "--min-nodes 4 is more than --nodes 2"),
        ({"overrides": ("data.shards=/nowhere",)}, "/nowhere"),
        ({"then": ("eval lin --train a",)}, "No such command 'lin'"),
        ({"then": ("eval knn --train a",)}, "Missing option '--test'"),
        ({"then": ("rm -rf /",)}, "is not an evaluation"),
        ({"then": ("eval knn --train 'a",)}, "No closing quotation"),
        ({"then": ("eval knn --help",)}, "is not an evaluation"),
        ({"then": ("eval knn --train /no --test /no",)}, "/no"),
        ({"at_exports": True}, "--at-exports has no effect without --then"),
    ],
)
def test_an_error_leaves_nothing_behind(
    tmp_path: Path, shards: Path, facts: dict[str, object], said: str
):
    with pytest.raises(UserError, match=said):
        submit(request_for(tmp_path / "runs" / "run", shards, **facts))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_refused(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(UserError, match=r"has 1e\+03 B free|has 1 kB free"):
        submit(request_for(tmp_path / "run", shards))
    assert list(tmp_path.iterdir()) == []


def test_if_the_scheduler_fails_everything_is_as_before(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(waiting: object) -> list[str]:
        raise UserError("the scheduler is down", "wait")

    monkeypatch.setattr("ssl_vit_launch.submit.start_local", fail)
    with pytest.raises(UserError, match="is down"):
        submit(request_for(tmp_path / "runs" / "run", shards))
    assert list(tmp_path.iterdir()) == []
    # An existing run keeps its config, and gets no submission.
    done = ssl_vit("pretrain", "mae_vits16", "--smoke", "--run", tmp_path / "old", *SHORT,
                   f"data.shards={shards}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match="is complete: nothing is left to train"):
        submit(request_for(tmp_path / "old", shards))
    shutil.rmtree(tmp_path / "old" / "exports")  # now the last export is missing
    before = (tmp_path / "old" / "config.yaml").read_text()
    overrides = (f"data.shards={shards}", *SHORT, "engine.zero_stage=2")
    with pytest.raises(UserError, match="is down"):
        submit(request_for(tmp_path / "old", shards, overrides=overrides))
    assert (tmp_path / "old" / "config.yaml").read_text() == before
    assert newest_submission(tmp_path / "old") is None
    assert not (tmp_path / "old" / "jobs").exists()
    # An empty folder stays empty, so that another run can use it.
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is down"):
        submit(request_for(empty, shards))
    assert list(empty.iterdir()) == []


def test_undoing_a_submission_keeps_other_runs(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(waiting: object) -> list[str]:
        (tmp_path / "runs" / "b").mkdir()  # made by another command meanwhile
        raise UserError("the scheduler is down", "wait")

    monkeypatch.setattr("ssl_vit_launch.submit.start_local", fail)
    with pytest.raises(UserError, match="is down"):
        submit(request_for(tmp_path / "runs" / "a", shards))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]


def test_a_dry_run_prints_the_script_and_the_plan_and_writes_nothing(tmp_path: Path, shards: Path):
    profile = tmp_path / "my.yaml"
    profile.write_text("partition: gpu\nprocesses_per_node: 2\ngpus_per_node: 2\n")
    done = ssl_vit(
        *("launch", "submit", "mae_vits16", "--smoke", "--run", tmp_path / "run", "--dry-run"),
        *("--cluster", profile, "--nodes", "2", f"data.shards={shards}"),
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=gpu\n" in done.stdout
    assert "srun --unbuffered" in done.stdout
    assert "2 nodes × 2 processes, ZeRO-1, 1 × 2 images per process" in done.stderr
    assert "disk: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_file_system_of_a_path_is_known():
    assert file_system(Path("/proc")) == "proc"
