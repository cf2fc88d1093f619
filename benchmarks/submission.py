"""Time from the command to a job id: ours, which checks the run, and a plain submitit script.

    python benchmarks/submission.py [--turns 5]

Needs Slurm's daemons (tests/slurm/install.sh); starts a cluster of two nodes on this machine. The
script is what one would write by hand: it imports torch for its training function and submits it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.slurm.cluster import SlurmCluster, SlurmUnavailable
from tests.slurm.jobs import HERE
from tests.synthetic import write_shards

BY_HAND = """
import sys, submitit, torch

def train(run):
    print(torch.__version__, run)

executor = submitit.AutoExecutor(folder=sys.argv[1], cluster="slurm")
executor.update_parameters(nodes=2, tasks_per_node=1, timeout_min=10, slurm_partition="low")
print(executor.submit(train, sys.argv[1]).job_id)
"""


def seconds_of(words: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def describe(name: str, seconds: list[float]) -> str:
    """One line: median, minimum and maximum."""
    return f"{name:34} {median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    folder = Path(tempfile.mkdtemp(prefix="ssl-vit-"))
    cluster = SlurmCluster(folder / "cluster")
    try:
        shards = write_shards(folder / "data")
        script = folder / "by_hand.py"
        script.write_text(BY_HAND)
        cluster.start()
        environment = {**os.environ, **cluster.environment}
        ours, theirs = [], []
        for turn in range(turns):
            words = [sys.executable, "-m", "ssl_vit", "launch", "submit", "mae_vits16", "--smoke"]
            words += ["--run", str(folder / f"run{turn}"), "--nodes", "2", f"data.shards={shards}"]
            words += ["--cluster", str(HERE / "cluster.yaml")]
            by_hand = [sys.executable, str(script), str(folder / f"hand{turn}")]
            ours.append(seconds_of(words, environment))
            theirs.append(seconds_of(by_hand, environment))
            cluster.run("scancel", "--user=root")
        print(f"command to job id, {turns} turns, load average {os.getloadavg()[0]:.1f}")
        print(describe("ssl-vit launch submit", ours))
        print(describe("a submitit script, no checks", theirs))
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        print(f"ratio {median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f}); target ≤ 3 s")
    except SlurmUnavailable as reason:
        print(reason, file=sys.stderr)
        return 2
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
