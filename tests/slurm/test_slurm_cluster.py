"""The cluster that other tests run on: the properties that they rely on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.processes import environments, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except SlurmUnavailable as reason:
        if "SSL_VIT_NEEDS_SLURM" in os.environ:  # CI installs it
            raise
        pytest.skip(str(reason))
    yield cluster
    cluster.stop()


def submit(cluster: SlurmCluster, command: str) -> int:
    sent = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", command)
    assert sent.returncode == 0, sent.stderr
    return int(sent.stdout)


def test_one_srun_reaches_both_nodes(cluster: SlurmCluster):
    done = cluster.run("srun", "-N2", "printenv", "SLURMD_NODENAME")
    assert sorted(done.stdout.split()) == ["n1", "n2"], done.stderr


def test_accounting_knows_how_a_job_ended(cluster: SlurmCluster):
    job = submit(cluster, "exit 3")
    ask = ("sacct", "-n", "-X", "-P", "-o", "State,ExitCode", "-j", str(job))
    wait_until("the job has failed", lambda: cluster.run(*ask).stdout == "FAILED|3:0\n")


def test_after_a_wipe_ids_restart_at_1_and_jobs_run(cluster: SlurmCluster):
    submit(cluster, "true")
    cluster.wipe()
    assert submit(cluster, "srun sleep 60") == 1
    wait_until("the job has a task", lambda: cluster.tasks(1))
    cluster.run("scancel", "1")
    cluster.wait_idle()


def test_a_stopped_cluster_leaves_no_process_and_does_not_affect_another(
    cluster: SlurmCluster, own_folder: Path
):
    with SlurmCluster(own_folder, accounting=False) as other:
        job = submit(other, "srun -N1 sleep 60")
        wait_until("the job has a task", lambda: other.tasks(job))
    marks = (other.name, str(other.folder))
    left = [pid for pid, said in environments().items() if any(m in str(said) for m in marks)]
    assert left == []
    assert cluster.run("srun", "-N2", "true").returncode == 0
