"""The batch script: golden, and what its bash does with an exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit_launch.batch import batch_text, evaluation_parameters, teardown_lines
from ssl_vit_launch.cluster import ClusterConfig, ContainerConfig, read_cluster
from ssl_vit_launch.submission import Submission

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "batch_scripts.sh"
PROFILES = sorted((ROOT / "launch" / "clusters").glob("*.yaml"))


def submission(cluster: ClusterConfig, logs: str, **facts: object) -> Submission:
    values = {"nodes": 4, "min_nodes": 4, **facts}
    return Submission(run=str(Path(logs).parents[1]), logs=logs, cluster=cluster, **values)  # type: ignore[arg-type]


def written() -> str:
    """What `make golden` writes: the script of every profile that SLURM takes."""
    found = []
    for file in PROFILES:
        cluster = read_cluster(str(file))
        if cluster.scheduler == "slurm":
            asked = submission(cluster, "/shared/runs/my run/jobs/001")
            found.append(f"### {file.name}, 4 nodes\n\n{batch_text(asked)}")
    elastic = ClusterConfig(processes_per_node=4, cpus_per_process=8)
    asked = submission(elastic, "/shared/runs/r/jobs/001", min_nodes=2, code="/shared/code")
    found.append(f"### 2 to 4 nodes, from a snapshot\n\n{batch_text(asked)}")
    return "\n\n".join(found).replace(sys.executable, "PYTHON") + "\n"


def test_the_scripts_are_the_golden_ones():
    assert written() == GOLDEN.read_text(), "make golden rewrites it; say why in the commit"


def test_the_scripts_are_bash(tmp_path: Path):
    for text in GOLDEN.read_text().split("### ")[1:]:
        script = tmp_path / "script.sh"
        script.write_text(text.partition("\n")[2])
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def end_of_job(folder: Path, code: int, state: str = "RUNNING", most: int = 2) -> tuple[int, bool]:
    """The exit code of a script whose srun ended with a code, and whether it asked for a requeue.

    Slurm's one command in it is replaced by one that says the job's state.
    """
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    asked = folder / "asked"
    asked.unlink(missing_ok=True)
    scontrol = commands / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then echo "   JobState={state} Reason=None"\n'
        f'else echo "$@" >> {asked}; fi\n'
    )
    scontrol.chmod(0o755)
    logs = folder / "the logs"
    logs.mkdir(exist_ok=True)
    lines = teardown_lines(submission(ClusterConfig(max_crashes=most), str(logs)))
    script = "\n".join([f"(exit {code})", *lines])
    path = f"{commands}:{os.environ['PATH']}"
    environment = {"PATH": path, "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environment, check=False)
    if asked.exists():
        assert asked.read_text() == "requeue 7\n"
    return done.returncode, asked.exists()


def test_a_crash_is_requeued_until_there_were_too_many(tmp_path: Path):
    assert end_of_job(tmp_path, 1) == (1, True)
    assert end_of_job(tmp_path, 137) == (137, False)
    assert len((tmp_path / "the logs" / "all_crashes_0").read_text().splitlines()) == 2
    # Progress: the first process of the next start takes the counter away.
    (tmp_path / "the logs" / "crashes_0").unlink()
    assert end_of_job(tmp_path, 1) == (1, True)


def test_a_run_that_saved_is_requeued_and_is_no_crash(tmp_path: Path):
    for _ in range(5):
        assert end_of_job(tmp_path, 75) == (75, True)


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING", "PENDING", "NODE_FAIL"])
def test_what_slurm_ended_is_slurms(tmp_path: Path, state: str):
    assert end_of_job(tmp_path, 143, state) == (143, False)
    assert not (tmp_path / "the logs" / "crashes_0").exists()


def test_neither_the_end_nor_a_mistake_is_requeued(tmp_path: Path):
    assert end_of_job(tmp_path, 0) == (0, False)
    (tmp_path / "the logs" / "refused_0").touch()
    assert end_of_job(tmp_path, 2) == (2, False)


def test_an_evaluation_takes_one_processs_share():
    cluster = ClusterConfig(processes_per_node=8, gpus_per_node=8, memory_gb=500)
    asked = evaluation_parameters(submission(cluster, "/r/jobs/001"), "afterok:7")
    assert (asked["nodes"], asked["gpus_per_node"], asked["mem"]) == (1, 1, "63GB")
    assert asked["dependency"] == "afterok:7"


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_a_container_runs_its_own_python(runtime: str):
    box = ContainerConfig.model_validate(
        {"runtime": runtime, "image": "box", "mounts": ("/a",), "python": "python9"}
    )
    words = ClusterConfig(container=box, gpus_per_node=1).srun_words()
    # What submitit appends begins with this machine's interpreter; played with echo for python9.
    at = words.index("sh")
    script = [*words[at:], "/here/bin/python", "-u", "-m", "x"]
    script[2] = script[2].replace("exec python9", "echo python9")
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout == "python9 -u -m x\n"
    assert any("box" in word for word in words[:at])
    assert any("/a" in word for word in words[:at])
