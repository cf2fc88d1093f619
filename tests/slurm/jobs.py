"""A run as a job of a test: submitted on the command line, observed from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_vit_launch.history import Event
from ssl_vit_launch.submission import events_of, newest_submission
from tests.command_line import ENVIRONMENT, PATIENCE, losses, ssl_vit
from tests.slurm.cluster import SlurmCluster
from tests.slurm.processes import wait_until
from tests.slurm.table import TABLE

HERE = Path(__file__).parent
LENGTH = 60
SETTINGS = ("schedule.warmup=4", "checkpoint.every_steps=8", "export.every_steps=1000")


def launch(cluster: SlurmCluster, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `ssl-vit launch …` as a user of the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "ssl_vit", "launch", *map(str, words)],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **cluster.environment},
        check=False,
        timeout=PATIENCE,
    )


def write_profile(folder: Path, faults: Mapping[str, object] | None = None, **changes: Any) -> Path:
    """The test cluster's profile with changed values, and with faults in its processes."""
    profile = yaml.safe_load((HERE / "cluster.yaml").read_text()) | changes
    if faults is not None:
        profile["environment"] = fault_environment(faults)
    file = folder / "my cluster.yaml"
    file.write_text(yaml.safe_dump(profile))
    return file


def run_unbroken(run: Path, shards: Path) -> None:
    """The run of these tests, without a job and uninterrupted."""
    words = (*SETTINGS, f"data.shards={shards}", f"schedule.length={LENGTH}")
    done = ssl_vit("pretrain", "mae_vits16", "--smoke", "--run", run, *words)
    assert done.returncode == 0, done.stderr


def check_same(run: Path, unbroken: Path) -> None:
    """Check that every step was made once, with the losses and samples of the uninterrupted run."""
    mine, theirs = losses(run), losses(unbroken)
    assert [step for step, _, _ in mine] == list(range(1, LENGTH + 1))
    assert [digest for _, _, digest in mine] == [digest for _, _, digest in theirs]
    assert [loss for _, loss, _ in mine] == pytest.approx([loss for _, loss, _ in theirs], abs=2e-5)


def fault_environment(faults: Mapping[str, object]) -> dict[str, str]:
    """Variables that inject faults into a job's processes; see faults/sitecustomize.py."""
    named = {f"SSL_VIT_TEST_{name.upper()}": str(value) for name, value in faults.items()}
    # In front of the caller's own, so that jobs run the code that the tests import.
    paths = (str(HERE / "faults"), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **named}


class Job:
    """A smoke run of ``LENGTH`` steps in the folder ``run``."""

    def __init__(self, cluster: SlurmCluster, run: Path) -> None:
        self.cluster, self.run = cluster, run

    def submit(self, profile: Path, shards: Path, *words: str | Path, nodes: int = 2) -> None:
        """Queue it."""
        settings = (*SETTINGS, f"schedule.length={LENGTH}", f"data.shards={shards}")
        self.submit_words(profile, "mae_vits16", "--smoke", *settings, *words, nodes=nodes)

    def submit_words(self, profile: Path, *words: str | Path, nodes: int = 2) -> None:
        """Queue another run, of a recipe and its settings."""
        options = ("--run", self.run, "--cluster", profile, "--nodes", str(nodes))
        done = launch(self.cluster, "submit", *words, *options)
        assert done.returncode == 0, done.stderr

    @property
    def id(self) -> str:
        submission = newest_submission(self.run)
        assert submission is not None
        return submission.job

    def events(self, kind: str) -> list[Event]:
        return [event for event in events_of(self.run) if event.kind == kind]

    def wait_for_update(self, step: int) -> None:
        """Wait until it has made this many steps."""

        def made() -> bool:
            found = losses(self.run)
            return bool(found) and found[-1][0] >= step

        wait_until(f"{self.run.name} has made {step} steps", made, PATIENCE)

    def wait_for_end(self) -> None:
        """Wait until it is complete."""
        wait_until(f"{self.run.name} is complete", lambda: bool(self.events("completed")), PATIENCE)

    def state(self) -> str:
        """Slurm's name of its state."""
        shown = self.cluster.run("scontrol", "show", "job", self.id).stdout
        return next((word[9:] for word in shown.split() if word.startswith("JobState=")), "unknown")

    def wait_for_state(self, *states: str) -> None:
        wait_until(f"job {self.id} is {states}", lambda: self.state() in states, PATIENCE)

    def status(self) -> str:
        done = launch(self.cluster, "status", self.run)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check_same(self, unbroken: Path) -> None:
        """See :func:`check_same`."""
        check_same(self.run, unbroken)

    def suffer(
        self,
        fault: str,
        act: Callable[[], object] | None,
        after: int = 20,
    ) -> None:
        """Cause a fault in the middle of the run, and wait until it is complete.

        Args:
            fault: Name for the table of docs/reliability.md.
            act: Causes the fault; None if the scheduler does, timed from its warning.
            after: Step to wait for first.
        """
        self.wait_for_update(after)
        starts = len(self.events("started"))
        began = time.time()
        if act is not None:
            act()
        made = losses(self.run)[-1][0]
        wait_until(
            f"{self.run.name} starts again",
            lambda: len(self.events("started")) > starts,
            PATIENCE,
        )
        if act is None:
            # A slow start may have been warned before it could record that.
            warned = self.events("stopped")[-1]
            began, made = warned.time, warned.step
        self.wait_for_end()
        step = self.events("started")[starts].step
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        again = next(line["time"] for line in lines if line["step"] == step + 1)
        TABLE.append((fault, max(0, made - step), again - began))
