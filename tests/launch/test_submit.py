"""The launcher: a job on this machine through submitit, and what it refuses before queueing."""

import shutil
from pathlib import Path

import pytest

from ssl_vit.errors import UserError
from ssl_vit_launch.cluster import ClusterConfig, read_cluster
from ssl_vit_launch.submit import executor_parameters, submit
from tests.command_line import losses, ssl_vit
from tests.synthetic import write_shards


def test_a_local_job_with_two_processes_trains_to_the_end(tmp_path: Path):
    shards = write_shards(tmp_path / "data")
    profile = tmp_path / "here.yaml"
    profile.write_text("scheduler: local\nprocesses_per_node: 2\n")
    run = tmp_path / "a run"
    done = ssl_vit(
        *("launch", "submit", "mae_vits16", "--smoke", "--run", run, "--cluster", profile),
        *("--wait", f"data.shards={shards}", "schedule.length=4", "schedule.warmup=1"),
    )
    assert done.returncode == 0, done.stderr
    assert [step for step, _, _ in losses(run)] == [1, 2, 3, 4]
    assert (run / "exports" / "step_00000004" / "backbone.json").is_file()


def test_a_slurm_profile_becomes_submitits_parameters():
    cluster = ClusterConfig(
        partition="gpu", processes_per_node=4, gpus_per_node=4, cpus_per_process=12
    )
    assert executor_parameters(cluster, nodes=2, name="run") == {
        "name": "run",
        "nodes": 2,
        "tasks_per_node": 4,
        "cpus_per_task": 12,
        "timeout_min": 1440,
        "gpus_per_node": 4,
        "slurm_signal_delay_s": 120,
        "slurm_additional_parameters": {"requeue": True},
        "slurm_partition": "gpu",
    }


def test_no_slurm_here_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no sbatch"):
        submit("mae_vits16", tmp_path / "run", [], True, ClusterConfig(), nodes=1)
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_divide_the_lanes_are_refused_before_queueing(tmp_path: Path):
    shards = write_shards(tmp_path / "data")
    cluster = ClusterConfig(scheduler="local", processes_per_node=3)
    with pytest.raises(UserError, match="3 processes do not divide"):
        submit("mae_vits16", tmp_path / "run", [f"data.shards={shards}"], True, cluster, nodes=1)
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_in_a_profile_is_named(tmp_path: Path):
    profile = tmp_path / "my.yaml"
    profile.write_text("partiton: gpu\n")
    with pytest.raises(UserError, match="partition"):
        read_cluster(str(profile))
