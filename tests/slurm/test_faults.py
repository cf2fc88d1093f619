"""Faults of a cluster: the run completes, with the same losses as an uninterrupted one."""

import os
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command_line import ssl_vit
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import LENGTH, SETTINGS, Job, launch, write_profile
from tests.slurm.processes import wait_until

pytestmark = pytest.mark.slurm


class Slow(NamedTuple):
    """Slow faults, each on nodes of its own, in parallel with the other tests."""

    time_limit: Future[Job]
    back: Future[Job]
    without: Future[Job]


@pytest.fixture(scope="module", autouse=True)
def slow(
    cluster: SlurmCluster, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Slow]:
    def begin(name: str, nodes: str, words: tuple[str, ...] = (), **profile: object) -> Job:
        folder = tmp_path_factory.mktemp(name)
        job = Job(cluster, folder / "run")
        pause = profile.pop("pause", 0.1)
        others = ",".join(node for node in cluster.nodes if node not in nodes.split())
        job.submit(
            write_profile(folder, {"pause": pause}, exclude=others, **profile), shards, *words
        )
        return job

    def time_limit() -> Job:
        # Slurm checks twice a minute, and warns up to half a minute early: 85 to 115 s after a
        # start, enough for some steps on a slow machine. The run is longer than that.
        job = begin("limit", "n3 n4", pause=2.2, timeout_minutes=2, warn_seconds=5)
        job.suffer("time limit", None, after=1)
        return job

    def back() -> Job:
        job = begin("back", "n5 n6")

        def fail() -> None:
            cluster.kill_node("n6")
            job.wait_for_state("PENDING")
            cluster.start_node("n6")

        job.suffer("a failed node that comes back", fail)
        return job

    def without() -> Job:
        job = begin("without", "n7 n8", ("--min-nodes", "1"))
        job.suffer("a failed node, --min-nodes 1", lambda: cluster.kill_node("n8"))
        return job

    with ThreadPoolExecutor(3) as pool:
        yield Slow(*(pool.submit(each) for each in (time_limit, back, without)))


@pytest.fixture
def job(cluster: SlurmCluster, tmp_path: Path) -> Job:
    return Job(cluster, tmp_path / "run")


@pytest.fixture
def slowly(tmp_path: Path) -> Path:
    """A profile in which a step takes at least a tenth of a second."""
    return write_profile(tmp_path, {"pause": 0.1}, exclude="n[3-8]")


def test_usr2_in_the_middle(job: Job, slowly: Path, shards: Path, unbroken: Path):
    job.submit(slowly, shards)
    job.suffer(
        "USR2 (scancel --signal=USR2)", lambda: job.cluster.run("scancel", "-s", "USR2", job.id)
    )
    job.check_same(unbroken)
    assert "asked to stop (SIGUSR2)" in job.status()


def preempt(job: Job) -> None:
    """Send a job of higher priority to the nodes of these tests."""
    words = ("-p", "high", "-N2", "--exclude=n[3-8]", "--exclusive", "--wrap", "sleep 1")
    sent = job.cluster.run("sbatch", "--output=/dev/null", *words)
    assert sent.returncode == 0, sent.stderr


def test_preemption_by_a_higher_partition(job: Job, slowly: Path, shards: Path, unbroken: Path):
    job.submit(slowly, shards)
    job.suffer("preemption by a partition of higher priority", lambda: preempt(job))
    job.check_same(unbroken)
    assert "asked to stop (SIGUSR2)" in job.status()


def test_preemption_of_fine_tuning(
    job: Job, slowly: Path, shards: Path, unbroken: Path, tmp_path: Path
):
    """Submitted with the words that `ssl-vit finetune --print` prints."""
    own = (*SETTINGS, f"schedule.length={LENGTH}", "objective.ema_momentum=0.9")
    tuning = ("finetune", unbroken, "--train", shards, "--smoke", *own, "--print", "--run")
    printed = ssl_vit(*tuning, job.run)
    assert printed.returncode == 0, printed.stderr
    words = shlex.split(printed.stdout)
    alone = tmp_path / "alone"
    done = ssl_vit("pretrain", *words, "--run", alone)
    assert done.returncode == 0, done.stderr
    job.submit_words(slowly, *words)
    job.suffer("preemption of fine-tuning", lambda: preempt(job))
    job.check_same(alone)
    assert (job.run / "validations.jsonl").read_text().count("\n") == LENGTH // 5


def test_requeue_by_an_administrator(job: Job, slowly: Path, shards: Path, unbroken: Path):
    job.submit(slowly, shards)
    job.suffer("scontrol requeue", lambda: job.cluster.run("scontrol", "requeue", job.id))
    job.check_same(unbroken)
    assert "asked to stop (SIGTERM)" in job.status()


def test_a_killed_rank(job: Job, slowly: Path, shards: Path, unbroken: Path):
    job.submit(slowly, shards)

    def kill_second_rank() -> None:
        for pid in job.cluster.tasks(job.id)["n2"]:
            os.kill(pid, signal.SIGKILL)

    job.suffer("kill -9 of one rank", kill_second_rank)
    job.check_same(unbroken)
    assert "crashed: a process was killed" in job.status()


def test_cancellation_saves_and_stays_over(job: Job, slowly: Path, shards: Path, unbroken: Path):
    job.submit(slowly, shards)
    job.wait_for_update(20)
    done = launch(job.cluster, "cancel", job.run)
    assert done.returncode == 0, done.stderr
    job.wait_for_state("CANCELLED")
    wait_until("it has saved", lambda: bool(job.events("stopped")))
    assert len(job.events("started")) == 1
    assert "canceled" in job.status()
    again = launch(job.cluster, "resubmit", job.run)
    assert again.returncode == 0, again.stderr
    job.wait_for_end()
    job.check_same(unbroken)
    # It resumed from where it was asked to stop, not from the checkpoint before.
    assert job.events("started")[1].step == job.events("stopped")[0].step


def test_a_crash_at_step_3_every_time_ends(job: Job, shards: Path, tmp_path: Path):
    profile = write_profile(tmp_path, {"crash": 3}, exclude="n[3-8]", max_crashes=2)
    job.submit(profile, shards)
    job.wait_for_state("FAILED")
    assert len(job.events("started")) == 2
    said = job.status()
    assert "crashed: rank 1: RuntimeError: a test's fault at step 3" in said
    assert f"from {job.run}/jobs/001/{job.id}_1_log.out:" in said
    assert f"ssl-vit launch resubmit {job.run}" in said


def test_a_time_limit_shorter_than_the_run(slow: Slow, unbroken: Path):
    job = slow.time_limit.result()
    job.check_same(unbroken)
    assert "asked to stop (SIGUSR2, the time limit)" in job.status()


def test_a_failed_node_that_comes_back(slow: Slow, unbroken: Path):
    job = slow.back.result()
    job.check_same(unbroken)
    assert job.events("started")[-1].text == "n5 n6"


def test_a_run_continues_without_a_failed_node(slow: Slow, unbroken: Path):
    job = slow.without.result()
    job.check_same(unbroken)
    assert [each.text for each in job.events("started")] == ["n7 n8", "n7"]
