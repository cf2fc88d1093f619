"""Running `ssl-vit` as a user does, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ssl_vit.distributed import local_group

# Quiet threads: tests share two cores with each other.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive"}

# A run of seconds; the run folder comes next.
SMOKE = ("pretrain", "mae_vits16", "--smoke", "--run")

# Seconds after which a command is taken for one that hangs: a machine under load may be twenty
# times slower than an idle one.
PATIENCE = 1200


def python(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python …` to its end."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
        check=False,
        timeout=PATIENCE,
    )


def ssl_vit(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ssl-vit …` to its end."""
    return python("-m", "ssl_vit", *words, cwd=cwd)


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
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone")
    return python(*launcher, "-m", "--", "ssl_vit", *words)


def run_group(
    commands: Sequence[Sequence[str | Path]], cwd: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python …` as the ranks of one group, each with words of its own, to their end."""
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | place,
            cwd=cwd,
        )
        for place, words in zip(local_group(len(commands)), commands, strict=True)
    ]
    with ThreadPoolExecutor(len(ranks)) as pool:  # all pipes are read at the same time
        said = list(pool.map(lambda rank: rank.communicate(timeout=PATIENCE), ranks))
    return [
        subprocess.CompletedProcess(rank.args, rank.returncode, *words)
        for rank, words in zip(ranks, said, strict=True)
    ]


def run_ranks(
    commands: Sequence[Sequence[str | Path]],
) -> list[subprocess.CompletedProcess[str]]:
    """Run `ssl-vit …` as the ranks of one run, each with words of its own, to their end."""
    return run_group([("-m", "ssl_vit", *words) for words in commands])


def losses(run: Path) -> list[tuple[int, float, str]]:
    """(step, loss, digest of the samples) of every line of a run's metrics, if it has begun.

    The line that the run is writing at this moment does not count: a reader may see its beginning.
    """
    file = run / "metrics.jsonl"
    text = file.read_text() if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    return [(line["step"], line["loss"], line["samples"]) for line in lines]
