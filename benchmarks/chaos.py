"""Fault tolerance: kills the ranks of a run at random moments, repeatedly, until it is done.

    python benchmarks/chaos.py [--kills 20] [--seed 0] [--updates 400]

Every start draws its number of processes and its ZeRO stage. A third of the kills happen while a
checkpoint is being written, the rest at any time, including imports and startup. At the end the run
must have the samples and losses of an uninterrupted run at every step; every start must resume from
the newest complete checkpoint. Exit code 1 if one of these does not hold.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_vit.distributed import local_group
from ssl_vit.files import hash_file
from ssl_vit.training.checkpoint import complete_checkpoints, read_manifest, step_of

_EVERY = 8  # steps between two checkpoints
_TOLERANCE = 1e-3  # relative difference of a loss: ranks and stages sum in different orders
_PATIENCE = 600.0  # seconds for one start


@dataclass
class Tally:
    """Counts of what happened."""

    kills: int = 0
    kills_while_saving: int = 0
    kills_before_the_first_step: int = 0
    steps_lost: int = 0
    most_lost: int = 0
    expected_starts: list[int] = field(default_factory=list)


def main() -> int:
    """Run both, compare and print; returns the exit code."""
    arguments = _read_arguments()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="ssl-vit-chaos-") as name:
        scratch = Path(name)
        shards = _write_shards(scratch)
        words = _words(shards, arguments.updates)
        began = time.perf_counter()
        unbroken = scratch / "unbroken"
        _wait(_start(unbroken, words, 1, 1, scratch / "unbroken.log"), scratch / "unbroken.log")
        broken = scratch / "broken"
        tally = _torment(broken, words, arguments.kills, rng, scratch / "broken.log")
        problems = _compare(broken, unbroken, arguments.updates)
        problems += _compare_starts(broken, tally.expected_starts)
    print(
        f"{tally.kills} kills ({tally.kills_while_saving} while writing a checkpoint, "
        f"{tally.kills_before_the_first_step} before the first step), "
        f"{tally.steps_lost} steps repeated, at most {tally.most_lost} after one kill "
        f"(a checkpoint every {_EVERY}), {time.perf_counter() - began:.0f} s"
    )
    for problem in problems:
        print(f"WRONG: {problem}")
    print("the run ended like an uninterrupted one" if not problems else "the run did not survive")
    return 1 if problems else 0


def _torment(run: Path, words: list[str], kills: int, rng: random.Random, log: Path) -> Tally:
    tally = Tally()
    while True:
        world_size, stage = rng.choice((1, 2)), rng.choice((0, 1, 2, 3))
        tally.expected_starts.append(_newest_whole(run))
        ranks = _start(run, words, world_size, stage, log)
        if tally.kills >= kills:
            _wait(ranks, log)
            return tally
        while_saving = rng.random() < 1 / 3
        made_before = _count_steps(run)
        if not _wait_for_moment(run, ranks, while_saving, rng):
            raise SystemExit(f"the run ended before it was killed: {log.read_text()[-3000:]}")
        victim = rng.choice(ranks)
        victim.send_signal(signal.SIGKILL)
        made = _count_steps(run)
        tally.kills += 1
        tally.kills_while_saving += while_saving
        tally.kills_before_the_first_step += made == made_before and not while_saving
        for rank in ranks:  # as a launcher ends the others
            if rank is not victim:
                time.sleep(rng.random() * 0.3)
                rank.kill()
            rank.wait()
        whole = _newest_whole(run)
        lost = max(0, made - whole)
        tally.steps_lost += lost
        tally.most_lost = max(tally.most_lost, lost)
        print(
            f"kill {tally.kills:2}: {world_size} × ZeRO-{stage}, "
            f"{'saving' if while_saving else 'any time'}, at step {made}, checkpoint at {whole}",
            flush=True,
        )


def _wait_for_moment(
    run: Path, ranks: list[subprocess.Popen[bytes]], while_saving: bool, rng: random.Random
) -> bool:
    """Wait for the moment to kill; false if the run ended first."""
    deadline = time.monotonic() + _PATIENCE
    goal = _count_steps(run) + rng.randrange(24)
    at_once = time.monotonic() + rng.random() * 6 if rng.random() < 1 / 4 else deadline
    while time.monotonic() < deadline:
        if any(rank.poll() is not None for rank in ranks):
            return False
        if while_saving:
            if any((run / "checkpoints").glob(".partial_*")):
                time.sleep(rng.random() * 0.02)
                return True
        elif _count_steps(run) > goal or time.monotonic() > at_once:
            return True
        time.sleep(0.001)
    raise SystemExit("a start made no progress")


def _compare(broken: Path, unbroken: Path, updates: int) -> list[str]:
    ours, theirs = _read(broken), _read(unbroken)
    problems = []
    if [line["step"] for line in ours] != list(range(1, updates + 1)):
        problems.append("metrics.jsonl does not have every step once")
    if [line["samples"] for line in ours] != [line["samples"] for line in theirs]:
        problems.append("samples differ from those of the uninterrupted run")
    difference = max(
        abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs, strict=False)
    )
    print(f"largest relative difference of a loss: {difference:.1e}")
    if difference > _TOLERANCE:
        problems.append(f"a loss differs by {difference:.1e}")
    return problems


def _compare_starts(run: Path, expected: list[int]) -> list[str]:
    """Compare starts in order; those that were killed early are not recorded."""
    starts = json.loads((run / "environment.json").read_text())["starts"]
    left = iter(expected)
    return [
        f"a start resumed from step {start['start_step']}, which was not the newest checkpoint"
        for start in starts
        if not any(step == start["start_step"] for step in left)
    ]


def _newest_whole(run: Path) -> int:
    """Step of the newest checkpoint; all checkpoints in the folder must be complete."""
    newest = 0
    for checkpoint in complete_checkpoints(run / "checkpoints"):
        manifest = read_manifest(checkpoint)
        if isinstance(manifest, str):
            raise SystemExit(f"WRONG: incomplete checkpoint: {manifest}")
        for name, facts in manifest.files.items():
            if hash_file(checkpoint / name) != facts.sha256:
                raise SystemExit(f"WRONG: incomplete checkpoint: {checkpoint / name}")
        newest = step_of(checkpoint)
    return newest


def _start(
    run: Path, words: list[str], world_size: int, stage: int, log: Path
) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ssl_vit", "pretrain", "mae_vits16", "--smoke"]
    command += ["--run", str(run), *words, f"engine.zero_stage={stage}"]
    ranks = []
    for place in local_group(world_size):
        with log.open("ab") as file:
            environment = os.environ | place | {"OMP_WAIT_POLICY": "passive"}
            ranks.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    return ranks


def _wait(ranks: list[subprocess.Popen[bytes]], log: Path) -> None:
    if any(rank.wait() for rank in ranks):
        raise SystemExit(f"a start failed: {log.read_text()[-3000:]}")


def _words(shards: Path, updates: int) -> list[str]:
    return [
        f"data.shards={shards}",
        "schedule.unit=steps",
        f"schedule.length={updates}",
        "schedule.warmup=10",
        "engine.precision=float32",
        "engine.zero3_whole_below=0",
        f"checkpoint.every_steps={_EVERY}",
        f"log.panel_every_steps={updates}",
        f"export.every_steps={updates}",
    ]


def _write_shards(scratch: Path) -> Path:
    rng = np.random.default_rng(0)
    images = scratch / "images"
    images.mkdir()
    for number in range(64):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        pixels = coarse.repeat(12, axis=0).repeat(12, axis=1)
        Image.fromarray(pixels).save(images / f"{number:03d}.png")
    command = [sys.executable, "-m", "ssl_vit", "shards", "pack", str(images)]
    subprocess.run([*command, str(scratch / "shards")], check=True, capture_output=True)
    return scratch / "shards"


def _count_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _read(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
