"""The pre-training runs of `quality.py`: their length in steps, command, and evaluated exports.

The length of a run is determined once, from the rate of a throwaway run, and kept in `length.json`,
so that a second call resumes with the same schedule.
"""

import contextlib
import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import psutil

from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.recipes import find_recipe, read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.metrics_file import read_metrics

POINTS = 10
"""Number of evaluated exports per run."""

# Settings that the benchmark itself sets.
_RESERVED = ("seed", "schedule.unit", "data.source", "data.shards", "data.weights")
_RESERVED += ("export.every_steps", "checkpoint.every_steps", "log.every_steps")
_EXIT_SAVED = 75
_WARM_SECONDS, _WARM_UPDATES = 5.0, 4
_RATE_SECONDS, _RATE_UPDATES = 25.0, 4
_PATIENCE_SECONDS = 600.0  # time limit for measuring a rate


@dataclass(frozen=True)
class Task:
    """A recipe to be trained for some minutes."""

    recipe: str
    words: tuple[str, ...]
    """Settings as path=value."""
    is_smoke: bool
    seed: int
    minutes: float

    @property
    def folder_name(self) -> str:
        """A unique name for everything that distinguishes runs."""
        parts = [self.recipe, *(["smoke"] if self.is_smoke else []), f"{self.minutes:g}min"]
        parts.append(f"seed{self.seed}")
        if self.words:
            parts.append(hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:6])
        return "_".join(parts)

    def read_config(self) -> RunConfig:
        """Config of the run, without its length and data.

        Raises:
            UserError: The recipe is unknown; a setting does not validate, or is the benchmark's.
        """
        for word in self.words:
            path = word.partition("=")[0]
            if path in _RESERVED:
                raise UserError(
                    f"--set {self.recipe}:{word} would be overridden: the benchmark sets {path}",
                    f"leave it out; it sets {', '.join(_RESERVED)}",
                )
        # A name, not a file: the settings of a file would not be in the folder's name.
        find_recipe(self.recipe)
        return read_config(self.recipe, self.words, self.is_smoke)

    def command(self, run: Path, shards: Path, updates: int, every_steps: int) -> list[str]:
        """Arguments of `ssl-vit`; the warm-up keeps its share of the run."""
        schedule = self.read_config().schedule
        warmup = updates * schedule.warmup / schedule.length
        return [
            *("pretrain", self.recipe, "--run", str(run)),
            *(["--smoke"] if self.is_smoke else []),
            *self.words,
            *(f"data.shards={shards}", f"seed={self.seed}", "schedule.unit=steps"),
            *(f"schedule.length={updates}", f"schedule.warmup={warmup:g}"),
            *(f"export.every_steps={every_steps}", f"checkpoint.every_steps={every_steps}"),
            "log.every_steps=1",
        ]


def words_by_recipe(settings: Sequence[str], recipes: Sequence[str]) -> dict[str, list[str]]:
    """The path=value words of each recipe, from settings written RECIPE:path=value.

    Raises:
        UserError: A setting is for none of the given recipes.
    """
    words: dict[str, list[str]] = {recipe: [] for recipe in recipes}
    for setting in settings:
        recipe, colon, word = setting.partition(":")
        if not colon or recipe not in words:
            raise UserError(
                f"--set {setting} is for none of the given recipes",
                f"write RECIPE:path=value with RECIPE one of {', '.join(words)}",
            )
        words[recipe].append(word)
    return words


@contextlib.contextmanager
def started(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ssl-vit …` in the background; if the block is left early, terminate it and wait."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    command = subprocess.Popen([sys.executable, "-m", "ssl_vit", *words])
    try:
        yield command
    finally:
        if command.poll() is None:
            command.terminate()
            command.wait()
        signal.signal(signal.SIGTERM, before)


def run_command(*words: str) -> None:
    """Print and run `ssl-vit …`.

    Raises:
        UserError: It failed; its error is printed above.
        KeyboardInterrupt: It was stopped after saving.
    """
    print(f"$ ssl-vit {' '.join(words)}", flush=True)
    with started(words) as command:
        code = command.wait()
    if code == _EXIT_SAVED:
        raise KeyboardInterrupt
    if code:
        raise UserError(
            f"`ssl-vit {words[0]}` ended with exit code {code}",
            "see the error above; run the same command again to resume",
        )


def train(task: Task, folder: Path, shards: Path, machine: str) -> RunFolder:
    """Start or resume pre-training; returns the finished run folder.

    Args:
        task: The run.
        folder: Has `length.json` (the number of steps) and `run`.
        shards: Training shards.
        machine: Description of this machine, recorded if the run starts now.
    """
    length, run = folder / "length.json", folder / "run"
    if not length.is_file():
        rate = measure_rate(task, folder / "rate", shards).per_second
        updates = count_updates(rate, task.minutes)
        began = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
        found = {"updates": updates, "updates_per_second": rate, **began}
        with replacing(length) as unfinished:
            unfinished.write_text(json.dumps(found, indent=1) + "\n")
        minutes = updates / rate / 60
        print(f"\n{rate:.2f} steps/s: {updates:,} steps take about {minutes:.1f} minutes")
    updates = read_length(folder)["updates"]
    run_command(*task.command(run, shards, updates, updates // POINTS))
    return RunFolder(run)


def read_length(folder: Path) -> dict[str, Any]:
    """Length of a run that has started: updates, updates_per_second, date, machine."""
    return json.loads((folder / "length.json").read_text())


class Rate(NamedTuple):
    """How fast a run makes its steps."""

    per_second: float
    """Steps per second of elapsed time."""
    per_cpu_second: float
    """Steps per second of CPU time of all processes of the run."""


def measure_rate(task: Task, run: Path, shards: Path) -> Rate:
    """The rate of a throwaway run.

    Raises:
        UserError: The run failed, or is too slow to be measured.
    """
    shutil.rmtree(run, ignore_errors=True)
    endless = 1_000_000
    words = task.command(run, shards, endless, endless)
    print("measuring the rate in half a minute of a throwaway run (ignore its ETA)")
    print(f"$ ssl-vit {' '.join(words)}", flush=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    metrics = RunFolder(run).metrics
    stamps: list[float] = []
    clock: list[tuple[float, float]] = []
    began = time.monotonic()
    with started(words) as command:
        while command.poll() is None and time.monotonic() - began < _PATIENCE_SECONDS:
            time.sleep(0.5)
            clock.append((time.time(), _cpu_seconds_of(command.pid)))
            stamps = without_warmup(_read_stamps(metrics))
            if len(stamps) > _RATE_UPDATES and stamps[-1] - stamps[0] > _RATE_SECONDS:
                break
        failed = command.poll()
    shutil.rmtree(run, ignore_errors=True)
    if failed is not None:
        raise UserError(
            f"`ssl-vit pretrain {task.recipe}` ended with exit code {failed}",
            "see the error above",
        )
    if len(stamps) < 2:
        raise UserError(
            f"{task.recipe} took too few steps in {_PATIENCE_SECONDS / 60:g} minutes",
            "reduce the batch size, for example  "
            f"--set {task.recipe}:data.global_batch_size=64,  or choose a smaller recipe",
        )
    times, cpu_seconds = np.array(clock).T
    first, last = np.interp((stamps[0], stamps[-1]), times, cpu_seconds)
    steps = len(stamps) - 1
    return Rate(steps / (stamps[-1] - stamps[0]), steps / float(last - first))


def _cpu_seconds_of(process: int) -> float:
    """CPU seconds so far of a process and its descendants, also of those that have ended."""
    seconds = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(each.cpu_times()[:4])  # its own, and of children it waited for
    return seconds


def without_warmup(stamps: Sequence[float]) -> list[float]:
    """Leave out the first steps, which are too fast because the queue of batches is full.

    Args:
        stamps: Times in seconds at which steps were done, ascending.
    """
    return [
        stamp
        for made, stamp in enumerate(stamps, start=1)
        if made >= _WARM_UPDATES and stamp - stamps[0] >= _WARM_SECONDS
    ]


def _read_stamps(metrics: Path) -> list[float]:
    """Times at which steps were done; an incomplete last line is left out."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return [json.loads(line)["time"] for line in lines if line.endswith("\n")]


def count_updates(rate: float, minutes: float) -> int:
    """Number of steps in so many minutes, a multiple of ``POINTS``.

    Args:
        rate: Steps per second.
        minutes: Length of the run.
    """
    return POINTS * max(1, math.floor(rate * minutes * 60 / POINTS))


def training_minutes(lines: Sequence[dict[str, Any]], starts: Sequence[int], batch: int) -> list:
    """Minutes of training until each line of `metrics.jsonl`, without pauses between starts.

    Args:
        lines: Lines of `metrics.jsonl`, at least one.
        starts: Steps that had been taken at each start of the run.
        batch: Images per step.
    """
    own = [batch / line["images_per_second"] for line in lines]
    seconds = own[:1]
    for (before, line), alone in zip(pairwise(lines), own[1:], strict=True):
        is_resumed = any(before["step"] <= start < line["step"] for start in starts)
        seconds.append(seconds[-1] + (alone if is_resumed else line["time"] - before["time"]))
    return [each / 60 for each in seconds]


def read_course(run: RunFolder) -> list[dict[str, Any]]:
    """The logged values at every evaluated export: step, minutes, images, loss, rankme."""
    lines = read_metrics(run.metrics)
    starts = [each["start_step"] for each in json.loads(run.environment.read_text())["starts"]]
    batch = run.read_config().data.global_batch_size
    minutes = training_minutes(lines, starts, batch)
    every = len(lines) // POINTS
    course = []
    for end in range(every, len(lines) + 1, every):
        # A step with a non-finite loss has none in the log.
        losses = [line["loss"] for line in lines[end - every : end] if line["loss"] is not None]
        ranks = [
            line["monitor/rankme"] for line in lines[:end] if line.get("monitor/rankme") is not None
        ]
        course.append(
            {
                "step": lines[end - 1]["step"],
                "minutes": minutes[end - 1],
                "images": lines[end - 1]["step"] * batch,
                "loss": fmean(losses) if losses else math.nan,
                "rankme": ranks[-1] if ranks else None,
            }
        )
    return course


def count_alarms(run: RunFolder) -> int:
    """Number of lines in the run's `alarms.jsonl`; 0 if there is no such file."""
    file = run.root / "alarms.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0
