"""From the command line to results on a real Slurm: jobs, arrays, evaluations, and refusals."""

import json
from pathlib import Path

import pytest

from ssl_vit_launch.submission import events_of, newest_submission
from tests.command_line import losses
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LENGTH, Job, launch, write_profile
from tests.slurm.processes import wait_until
from tests.synthetic import write_shards

pytestmark = pytest.mark.slurm


@pytest.fixture
def job(cluster: SlurmCluster, tmp_path: Path) -> Job:
    return Job(cluster, tmp_path / "run")


def refused(cluster: SlurmCluster, run: Path, *words: str | Path) -> str:
    """The two-line error of a command that is refused and leaves nothing behind."""
    done = launch(cluster, "submit", "mae_vits16", "--smoke", "--run", run, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    # A description may come first; the error is the last two lines.
    said = done.stderr.splitlines()
    assert [line[:7] for line in said[-2:]] == ["error: ", "fix:   "], done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_two_nodes_train_export_and_are_evaluated(
    job: Job, shards: Path, unbroken: Path, tmp_path: Path
):
    test_set = write_shards(tmp_path / "test", per_class=12)
    # k-NN of every export as it appears, and of the finished run.
    evaluation = f"eval knn --train {shards} --test {test_set}"
    profile = write_profile(tmp_path)
    words = ("--then", evaluation, "--at-exports", "export.every_steps=40")
    job.submit(profile, shards, *words)
    job.wait_for_end()
    job.check_same(unbroken)
    assert (job.run / "exports" / f"step_{LENGTH:08d}" / "backbone.json").is_file()
    results = [job.run / "evals" / f"knn_step_{step:08d}.json" for step in (40, LENGTH)]
    wait_until("both exports are evaluated", lambda: all(file.is_file() for file in results))
    status = job.status()
    assert status.splitlines()[1] == f"state     complete (job {job.id}, slurm)"
    assert "restarts  none" in status
    finished = f"then      {evaluation}: completed (job "
    wait_until("the evaluation's job is known to be over", lambda: finished in job.status())
    again = launch(job.cluster, "resubmit", job.run)
    assert again.returncode == 2
    assert "is complete: nothing is left to train" in again.stderr
    listed = launch(job.cluster, "list", tmp_path).stdout
    assert f"{LENGTH}/{LENGTH}" in listed
    assert "knn" in listed
    log = launch(job.cluster, "logs", job.run, "--rank", "0").stdout
    assert f"step {LENGTH}/{LENGTH}" in log


def test_an_array_of_six(cluster: SlurmCluster, shards: Path, tmp_path: Path):
    folder = tmp_path / "a sweep"
    words = (f"data.shards={shards}", "schedule.length=6", "schedule.warmup=1")
    values = ("seed=0,1,2", "objective.mask_ratio=0.5,0.75")
    done = launch(
        cluster,
        *("sweep", "mae_vits16", "--smoke", "--run", folder, "--wait"),
        *("--cluster", write_profile(tmp_path), *words, *values),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path.name for path in folder.iterdir() if path.name != "jobs")
    assert runs == sorted(
        f"seed={seed},mask_ratio={ratio}" for seed in range(3) for ratio in (0.5, 0.75)
    )
    assert all(len(losses(folder / run)) == 6 for run in runs)
    assert len({losses(folder / run)[-1][1] for run in runs}) == 6
    assert all(run in done.stdout for run in runs)  # the table at the end
    ids = {newest_submission(folder / run).job for run in runs}  # type: ignore[union-attr]
    array = next(iter(ids)).partition("_")[0]
    assert ids == {f"{array}_{place}" for place in range(6)}


def test_a_crash_in_an_array_does_not_affect_the_other_jobs(
    cluster: SlurmCluster, shards: Path, tmp_path: Path
):
    folder = tmp_path / "sweep"
    # It crashes at its third update; the other one is over after two.
    profile = write_profile(tmp_path, {"crash": 3}, max_crashes=2)
    done = launch(
        cluster,
        *("sweep", "mae_vits16", "--smoke", "--run", folder, "--wait", "--cluster", profile),
        *(f"data.shards={shards}", "schedule.warmup=1", "schedule.length=2,8"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    kinds = {
        run: [event.kind for event in events_of(folder / run)] for run in ("length=2", "length=8")
    }
    assert kinds["length=2"] == ["submitted", "started", "completed"]
    assert kinds["length=8"].count("started") == 2
    assert kinds["length=8"].count("crashed") == 2
    assert "failed" in done.stdout
    # A folder of runs can be canceled as a whole; here nothing is left to cancel.
    assert launch(cluster, "cancel", folder).returncode == 2


def test_a_name_and_paths_with_spaces(cluster: SlurmCluster, tmp_path: Path):
    shards = write_shards(tmp_path / "my data")
    job = Job(cluster, tmp_path / "my runs" / "it's run 1")
    job.submit(write_profile(tmp_path), shards, "--from-snapshot", nodes=1)
    job.wait_for_end()
    assert "complete" in job.status()
    environment = json.loads((job.run / "environment.json").read_text())
    assert environment["starts"][0]["world_size"] == 1
    # The snapshot ran: its folder is on the path, and is not a git checkout.
    submission = newest_submission(job.run)
    assert submission is not None
    assert submission.code.startswith(str(job.run))
    assert (
        "export PYTHONPATH=" in (job.run / "jobs" / "001" / f"{job.id}_submission.sh").read_text()
    )
    assert "commit" not in environment["starts"][0]


def test_a_cluster_without_accounting(
    shards: Path, unbroken: Path, tmp_path: Path, own_folder: Path
):
    with SlurmCluster(own_folder, accounting=False) as cluster:
        job = Job(cluster, tmp_path / "run")
        job.submit(write_profile(tmp_path, {"pause": 0.1}), shards)
        job.suffer("USR2 without accounting", lambda: cluster.run("scancel", "-s", "USR2", job.id))
        job.check_same(unbroken)
        assert "complete" in job.status()
        gone = Job(cluster, tmp_path / "gone")
        gone.submit(write_profile(tmp_path, {"pause": 0.1}), shards)
        gone.wait_for_update(2)
        # The controller forgets the job, and there is no accounting.
        cluster.wipe()
        said = gone.status()
        assert "state     ended (job 2, slurm)" in said
        assert "keeps no accounting (sacct)" in said


def test_job_ids_are_reused(shards: Path, unbroken: Path, tmp_path: Path, own_folder: Path):
    with SlurmCluster(own_folder) as cluster:
        first = Job(cluster, tmp_path / "first")
        # Slow enough that it is still running when a machine under load gets to cancel it.
        first.submit(write_profile(tmp_path, {"pause": 3}), shards)
        first.wait_for_update(2)
        assert launch(cluster, "cancel", first.run).returncode == 0
        first.wait_for_state("CANCELLED")
        cluster.wipe()
        # The controller has forgotten it; accounting has not.
        assert "state     canceled" in first.status()
        second = Job(cluster, tmp_path / "second")
        second.submit(write_profile(tmp_path, {"pause": 0.1}), shards)
        assert second.id == first.id
        second.wait_for_update(5)
        # The id belongs to another job now: the first run is over, and cannot cancel it.
        assert "state     canceled" in first.status()
        refused_cancel = launch(cluster, "cancel", first.run)
        assert refused_cancel.returncode == 2
        assert "is CANCELLED" in refused_cancel.stderr
        quick = write_profile(tmp_path, {"pause": 0.1})
        again = launch(cluster, "resubmit", first.run, "--cluster", quick)
        assert again.returncode == 0, again.stderr
        for job in (first, second):
            job.wait_for_end()
            job.check_same(unbroken)


def test_what_a_partition_does_not_allow_is_refused_before_queueing(
    cluster: SlurmCluster, shards: Path, tmp_path: Path
):
    run, data = tmp_path / "run", f"data.shards={shards}"

    def error_for(nodes: int = 1, **changes: object) -> str:
        profile = write_profile(tmp_path, **changes)
        lanes = ("data.lanes=16", "data.global_batch_size=16")
        return refused(cluster, run, "--cluster", profile, "--nodes", str(nodes), data, *lanes)

    assert "no partition named 'gpu'" in error_for(partition="gpu")
    assert "high, low, short" in error_for(partition="gpu")
    assert "4 GPUs per node requested, but partition low has 0" in error_for(gpus_per_node=4)
    assert "60 minutes per job requested, but partition short has 5" in error_for(partition="short")
    assert "16 nodes requested, but partition low has 8" in error_for(nodes=16)
    assert "2 nodes per job requested, but partition short has 1" in error_for(
        nodes=2, partition="short", timeout_minutes=5
    )
    assert "16 cores per node" in error_for(cpus_per_process=16)
    assert "MB of memory per node" in error_for(memory_gb=400)
    assert not run.exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_the_error_of_sbatch_is_quoted(cluster: SlurmCluster, shards: Path, tmp_path: Path):
    profile = write_profile(tmp_path, account="nobodys")
    said = refused(cluster, tmp_path / "run", "--cluster", profile, f"data.shards={shards}")
    assert "sbatch rejected the job" in said
    assert "Invalid account or account/partition combination" in said
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_refused_and_its_job_named(job: Job, shards: Path, tmp_path: Path):
    profile = write_profile(
        tmp_path, {"pause": 3}
    )  # still running when the second submission is refused
    job.submit(profile, shards)
    said = refused(job.cluster, job.run, "--cluster", profile, f"data.shards={shards}")
    assert f"its job {job.id} is" in said
    assert launch(job.cluster, "cancel", job.run).returncode == 0
    job.wait_for_state("CANCELLED")
