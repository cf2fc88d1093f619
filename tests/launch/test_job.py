"""How a process of a job ends, which determines what the batch script counts as a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit.training.preemption import EXIT_SAVED
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.job import EXIT_TERMINATED
from ssl_vit_launch.submission import Submission, events_of, write_submission

PROCESS = """
import os, signal, sys, traceback
from pathlib import Path
from ssl_vit.training.preemption import Preemption
from ssl_vit_launch import job

def fail(*_):
    # srun sends this process a SIGTERM while it reports its error.
    traceback.print_exc = lambda: os.kill(os.getpid(), signal.SIGTERM)
    raise ValueError("no such thing")

def is_stopped_before_training(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def is_stopped_during_training(*_):
    with Preemption(True) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        preemption.hand_back()

job._train = globals()[sys.argv[2]]
job.run_process(Path(sys.argv[1]), "7", "n1")
"""


@pytest.mark.parametrize(
    ("what", "code", "kinds"),
    [
        ("fail", 1, ["started", "failed"]),
        ("is_stopped_before_training", EXIT_TERMINATED, ["started", "stopped"]),
        ("is_stopped_during_training", EXIT_SAVED, ["started", "stopped"]),
    ],
)
def test_the_first_process_ends_with_a_distinct_exit_code(
    tmp_path: Path, what: str, code: int, kinds: list[str]
):
    run, logs = tmp_path / "run", tmp_path / "run" / "jobs" / "001"
    logs.mkdir(parents=True)
    asked = Submission(
        run=str(run), logs=str(logs), cluster=ClusterConfig(scheduler="local"), nodes=1, min_nodes=1
    )
    write_submission(logs, asked)
    words = [sys.executable, "-c", PROCESS, run, what]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert [event.kind for event in events_of(run)] == kinds
