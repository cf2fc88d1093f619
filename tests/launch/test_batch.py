"""The batch script: its golden text, and how its bash handles an exit code."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit.data.cache import default_folder
from ssl_vit.errors import UserError
from ssl_vit_launch.batch import (
    batch_text,
    evaluation_parameters,
    setup_lines,
    start_lines,
    teardown_lines,
)
from ssl_vit_launch.cluster import ClusterConfig, ContainerConfig, read_cluster
from ssl_vit_launch.history import History
from ssl_vit_launch.job import use_local_cache
from ssl_vit_launch.submission import Submission

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "batch_scripts.sh"
PROFILES = sorted((ROOT / "launch" / "clusters").glob("*.yaml"))


def submission(cluster: ClusterConfig, logs: str, **facts: object) -> Submission:
    values = {"nodes": 4, "min_nodes": 4, **facts}
    return Submission(run=str(Path(logs).parents[1]), logs=logs, cluster=cluster, **values)  # type: ignore[arg-type]


def script_of(asked: Submission) -> str:
    return batch_text(asked, [Path(asked.logs)])


def written() -> str:
    """What `make golden` writes: the batch script of every profile for SLURM."""
    found = []
    for file in PROFILES:
        cluster = read_cluster(str(file))
        if cluster.scheduler == "slurm":
            asked = submission(cluster, "/shared/runs/my run/jobs/001")
            found.append(f"### {file.name}, 4 nodes\n\n{script_of(asked)}")
    elastic = ClusterConfig(processes_per_node=4, cpus_per_process=8)
    asked = submission(elastic, "/shared/runs/r/jobs/001", min_nodes=2, code="/shared/code")
    found.append(f"### 2 to 4 nodes, from a snapshot\n\n{script_of(asked)}")
    return "\n\n".join(found).replace(sys.executable, "PYTHON") + "\n"


def test_the_scripts_are_the_golden_ones():
    assert written() == GOLDEN.read_text(), "make golden rewrites it; say why in the commit"


def test_the_scripts_are_bash(tmp_path: Path):
    for text in GOLDEN.read_text().split("### ")[1:]:
        script = tmp_path / "script.sh"
        script.write_text(text.partition("\n")[2])
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def end_of_job(
    folder: Path,
    code: int,
    state: str = "RUNNING",
    most: int = 2,
    during: str = ":",
    **variables: str,
) -> tuple[int, bool]:
    """The exit code of a script whose srun ended with a code, and whether it asked for a requeue.

    scontrol is replaced by a script that reports the given job state. The jobs of an array have the
    folders `run 0` to `run 4`; ``during`` is what srun does.
    """
    commands, asked = folder / "commands", folder / "asked"
    commands.mkdir(exist_ok=True)
    asked.unlink(missing_ok=True)
    scontrol = commands / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then echo "   JobState={state} Reason=None"\n'
        f'else echo "$@" >> {asked}; fi\n'
    )
    scontrol.chmod(0o755)
    job_folders = [folder / f"run {index}" for index in range(5)]
    for each in job_folders:
        each.mkdir(exist_ok=True)
    asked_for = submission(ClusterConfig(max_crashes=most), "/a/jobs/001", nodes=1, min_nodes=1)
    script = [*start_lines(asked_for, job_folders), during, f"(exit {code})"]
    script += teardown_lines(asked_for)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
    done = subprocess.run(["bash", "-c", "\n".join(script)], env=environment, check=False)
    if asked.exists():
        array = variables.get("SLURM_ARRAY_TASK_ID")
        assert asked.read_text() == (f"requeue 7_{array}\n" if array else "requeue 7\n")
    return done.returncode, asked.exists()


def test_a_crash_is_requeued_up_to_max_crashes(tmp_path: Path):
    assert end_of_job(tmp_path, 1) == (1, True)
    assert end_of_job(tmp_path, 137) == (137, False)
    history = History(tmp_path / "run 0")
    assert [(event.kind, event.job, event.code) for event in history.read()] == [
        ("crashed", "7", 1),
        ("crashed", "7", 137),
    ]


def test_crashes_are_counted_since_the_last_progress(tmp_path: Path):
    history = History(tmp_path / "run 0")
    history.folder.mkdir()
    history.add("started", "7", step=0, nodes=1, text='"step": 99')
    assert end_of_job(tmp_path, 1) == (1, True)
    history.add("started", "7", step=8, nodes=1, text="n1")
    assert end_of_job(tmp_path, 1) == (1, True)
    history.add("started", "7", step=8, nodes=1, text="n1")
    history.add("failed", "7", rank=3, text="x")
    assert end_of_job(tmp_path, 1) == (1, False)


def test_a_line_that_a_kill_truncated_hides_no_crash(tmp_path: Path):
    cut = """printf '{"kind": "started", "job": "7", "ti' >> "$job_history"; """
    assert end_of_job(tmp_path, 1, during=cut) == (1, True)
    assert end_of_job(tmp_path, 1, during=cut) == (1, False)
    history = History(tmp_path / "run 0")
    history.add("started", "7", step=0)
    history.add("started", "7", step=8)
    assert end_of_job(tmp_path, 1, during=cut) == (1, True)
    kinds = [event.kind for event in history.read()]
    assert kinds == ["crashed", "crashed", "started", "started", "crashed"]


def test_a_job_of_an_array_is_requeued_and_counted_alone(tmp_path: Path):
    # To scontrol, the bare number is the whole array, and also the id of one of its jobs.
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert end_of_job(tmp_path, 1, **array) == (1, True)
    assert end_of_job(tmp_path, 1, **array) == (1, False)
    array["SLURM_ARRAY_TASK_ID"] = "4"
    assert end_of_job(tmp_path, 1, **array) == (1, True)


def test_a_crash_that_cannot_be_counted_is_not_requeued(tmp_path: Path):
    # On a full disk, for example: it would be requeued forever.
    (tmp_path / "run 0" / "history.jsonl").mkdir(parents=True)
    assert end_of_job(tmp_path, 1) == (1, False)


def test_an_early_sigterm_counts_as_srun_sends_it_for_another_ranks_failure(tmp_path: Path):
    assert end_of_job(tmp_path, 143) == (143, True)
    assert end_of_job(tmp_path, 143) == (143, False)


@pytest.mark.parametrize("code", [75, 140])
def test_a_run_that_was_asked_to_stop_is_requeued_without_counting(tmp_path: Path, code: int):
    for _ in range(5):
        assert end_of_job(tmp_path, code) == (code, True)


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING", "PENDING", "NODE_FAIL"])
def test_a_job_that_slurm_ended_is_left_to_slurm(tmp_path: Path, state: str):
    assert end_of_job(tmp_path, 143, state) == (143, False)
    assert History(tmp_path / "run 0").read() == []


def test_a_complete_or_refused_run_is_not_requeued(tmp_path: Path):
    assert end_of_job(tmp_path, 0) == (0, False)
    refuse = """
import sys
from pathlib import Path
from ssl_vit_launch.history import History
History(Path(sys.argv[1])).add("refused", "7", 3, text="no shards")
"""
    refusing = f'{sys.executable} -c {shlex.quote(refuse)} "$job_folder"'
    assert end_of_job(tmp_path, 143, during=refusing) == (143, False)
    # After a manual requeue, the earlier refusal does not matter.
    assert end_of_job(tmp_path, 1) == (1, True)


def test_a_line_of_the_profile_that_fails_ends_the_job(tmp_path: Path):
    cluster = ClusterConfig(setup=("export A=1; true", "echo $A", "false 'it is'", "echo after"))
    script = "\n".join(setup_lines(submission(cluster, str(tmp_path))))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[:2] == ["1", "error: this line of the cluster profile failed: false 'it is'"]
    assert "after" not in lines


@pytest.mark.parametrize("sees", [True, False])
def test_a_node_that_does_not_see_the_run_ends_the_job_with_an_error(tmp_path: Path, sees: bool):
    folder = tmp_path / "the folder"
    folder.mkdir()
    # The job's own node sees it; a shell stands in for srun on another one.
    srun = tmp_path / "srun"
    srun.write_text(
        '#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\n'
        + ("" if sees else 'set -- "$1" "$2" "$3" /nowhere\n')
        + '"$@"\n'
    )
    srun.chmod(0o755)
    asked = submission(ClusterConfig(), "/a/jobs/001")
    script = "\n".join([*start_lines(asked, [folder]), "echo begun"])
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURMD_NODENAME": "n7"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "begun" in done.stdout) == ((0, True) if sees else (2, False))
    assert ("node n7 does not see" in done.stdout) == (not sees)


# Another value for every setting, and the settings that do not affect the batch script.
OTHERS: dict[str, object] = {
    "partition": "p",
    "account": "a",
    "qos": "q",
    "constraint": "c",
    "exclude": "n7",
    "processes_per_node": 2,
    "gpus_per_node": 1,
    "cpus_per_process": 3,
    "memory_gb": 5,
    "timeout_minutes": 77,
    "warn_seconds": 33,
    "max_crashes": 9,
    "modules": ("m",),
    "setup": ("s",),
    "environment": {"E": "e"},
    "network_interface": "ib7",
    "container": ContainerConfig(image="box"),
    "srun": ("--x",),
    "sbatch": {"mail-type": "FAIL", "exclusive": True, "overcommit": False},
}
ELSEWHERE = {"scheduler", "local_cache"}


def test_every_setting_of_a_profile_changes_the_script():
    assert OTHERS.keys() | ELSEWHERE == set(ClusterConfig.model_fields)
    plain = script_of(submission(ClusterConfig(), "/r/jobs/001"))
    for name, value in OTHERS.items():
        changed = ClusterConfig.model_validate({name: value})
        assert script_of(submission(changed, "/r/jobs/001")) != plain, name
    flags = script_of(submission(ClusterConfig(sbatch=OTHERS["sbatch"]), "/r/jobs/001"))  # type: ignore[arg-type]
    assert "#SBATCH --exclusive\n" in flags
    assert "overcommit" not in flags


def test_variables_in_local_cache_are_expanded_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.delenv("SSL_VIT_CACHE", raising=False)
    use_local_cache(ClusterConfig(local_cache="$SLURM_TMPDIR/shards"))
    assert default_folder() == tmp_path / "shards"
    with pytest.raises(UserError, match=r"\$NOBODY/shards: a variable in it is not set"):
        use_local_cache(ClusterConfig(local_cache="$NOBODY/shards"))


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
    # What submitit appends begins with this machine's interpreter; echo stands in for python9.
    at = words.index("sh")
    script = [*words[at:], "/here/bin/python", "-u", "-m", "x"]
    script[2] = script[2].replace("exec python9", "echo python9")
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout == "python9 -u -m x\n"
    assert any("box" in word for word in words[:at])
    assert any("/a" in word for word in words[:at])
