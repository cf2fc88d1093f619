"""Twenty kills with a fixed seed, through the program that anyone can run for longer."""

import subprocess
import sys
from pathlib import Path

from tests.command_line import ENVIRONMENT, PATIENCE

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def test_a_run_killed_twenty_times_ends_as_if_nothing_had_been():
    done = subprocess.run(
        [sys.executable, str(CHAOS), "--kills", "20", "--seed", "0"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=12 * PATIENCE,  # 20 starts,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills" in done.stdout
    assert "ended like an uninterrupted one" in done.stdout
