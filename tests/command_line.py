"""Running `ssl-vit` as a user does, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Quiet threads: tests share two cores with each other.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive"}

# Seconds after which a command is taken for one that hangs.
PATIENCE = 300


def ssl_vit(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ssl-vit …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ssl_vit", *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
        check=False,
        timeout=PATIENCE,
    )


def begin_ssl_vit(*words: str | Path) -> subprocess.Popen[str]:
    """Start `ssl-vit …` and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_vit", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def torchrun(processes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `torchrun … -m -- ssl_vit …`; without the `--` torchrun takes `--run` for its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, "--standalone", "-m", "--", "ssl_vit", *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE,
    )


def losses(run: Path) -> list[tuple[int, float, str]]:
    """(step, loss, digest of the samples) of every line of a run's metrics."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [(line["step"], line["loss"], line["samples"]) for line in lines]
