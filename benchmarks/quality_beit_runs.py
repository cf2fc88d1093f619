"""The runs of `quality.py --only beit`: which rows there are, and their training in equal CPU time.

A row is one way to targets for masked patches. Of its CPU time a fifth trains the tokenizer, if it
has one to train, and the rest the network that is evaluated. The number of steps follows from a
rate in CPU time that is measured once per row, so that its seeds make equally many; what the
processes really used is added up beside it.
"""

import hashlib
import json
import resource
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from quality_runs import POINTS, Task, count_updates, measure_rate, run_command

from ssl_vit.data.sources import open_shards
from ssl_vit.files import replacing
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.metrics_file import read_metrics

CORES = 2
"""Minutes are those of so many busy cores."""
TOKENIZER_SHARE = 0.2
"""Share of a row's CPU time that trains its tokenizer."""
_SMOKE_UPDATES = 20

MAE, DINOV2, MASKFEAT = "mae_small_data", "dinov2_small_data", "maskfeat_small_data"
TOKENIZER, BEIT = "tokenizer_pixels_small_data", "beit_small_data"
RECIPES = (MAE, DINOV2, TOKENIZER, BEIT, MASKFEAT)


@dataclass(frozen=True)
class Row:
    """One way to targets for masked patches, or a network to compare with."""

    key: str
    """Name for `--rows` and of its folder."""
    title: str
    """Name in the report."""
    recipe: str
    """Recipe of the network that is evaluated."""
    target: str = ""
    """`objective.target` of the tokenizer's run; empty: it has no tokenizer to train."""
    teacher: str = ""
    """Key of the row whose run is the tokenizer's teacher; empty: none."""
    num_seeds: int = 1
    """Number of runs where `--seeds` is not given."""


PLACEHOLDER = "placeholder"
ROWS = {
    row.key: row
    for row in (
        Row("mae", "MAE", MAE, num_seeds=3),
        Row("dinov2", "DINOv2", DINOV2),
        Row("features-mae", "BEiT, features of MAE", BEIT, "features", "mae", num_seeds=3),
        Row("features-dinov2", "BEiT, features of DINOv2", BEIT, "features", "dinov2"),
        Row("kmeans-mae", "BEiT, k-means of MAE's features", BEIT, "kmeans", "mae"),
        Row("pixels", "BEiT, pixels", BEIT, "pixels"),
        Row("random", "BEiT, features of a random network", BEIT, "random"),
        Row("hog", "MaskFeat, HOG", MASKFEAT),
        Row(PLACEHOLDER, "BEiT, placeholder tokenizer", BEIT, num_seeds=3),
    )
}
SMOKE_ROWS = ("mae", "features-mae", "hog", PLACEHOLDER)
"""What `--smoke` trains unless told otherwise."""


@dataclass(frozen=True)
class Spent:
    """What one run took."""

    steps: int
    cpu_seconds: float
    """User and system time of all its processes, start-up included."""
    starts: int
    """1, or more if it was interrupted."""


@dataclass(frozen=True)
class Trained:
    """The finished runs of one row and seed."""

    network: RunFolder
    """The run that is evaluated."""
    tokenizer: RunFolder | None
    """The run of its tokenizer, if that was trained."""
    placeholder: Path | None
    """The export of its tokenizer, if that was not trained."""
    spent: tuple[Spent, ...]
    """Of the tokenizer, if it was trained, and of the network."""


@dataclass(frozen=True)
class Bench:
    """Trains rows on one data set; what is finished is not trained again."""

    folder: Path
    """Everything is below it."""
    shards: Path
    """Training shards."""
    minutes: float
    """CPU time of a row, in minutes of two busy cores."""
    words: dict[str, list[str]]
    """Settings of a recipe as path=value."""
    is_smoke: bool
    machine: str
    """Description of this machine, recorded when a length is set."""

    @cached_property
    def _name(self) -> str:
        parts = [*(["smoke"] if self.is_smoke else []), f"{self.minutes:g}min"]
        if any(self.words.values()):
            parts.append(hashlib.sha256(json.dumps(self.words).encode()).hexdigest()[:6])
        return "_".join(parts)

    def home(self, row: Row, seed: int) -> Path:
        """Folder of one row and seed."""
        return self.folder / f"{row.key}_{self._name}" / f"seed{seed}"

    def read_config(self, recipe: str) -> RunConfig:
        """Config of a recipe's runs, without their length, data and given networks.

        Raises:
            UserError: A setting does not validate, or is the benchmark's.
        """
        return Task(recipe, tuple(self.words[recipe]), self.is_smoke, 0, 1.0).read_config()

    def train(self, row: Row, seed: int) -> Trained:
        """Train a row, and before it the teacher that its tokenizer needs."""
        if row.target:
            own = [f"objective.target={row.target}"]
            if row.teacher:
                teacher = self.train(ROWS[row.teacher], seed).network.root
                own.append(f"objective.teacher={teacher}")
            minutes = self.minutes * TOKENIZER_SHARE
            tokenizer, first = self.run(row, seed, "tokenizer", TOKENIZER, own, minutes)
            given = [f"objective.tokenizer={tokenizer.root}"]
            network, rest = self.run(row, seed, "run", BEIT, given, self.minutes - minutes)
            return Trained(network, tokenizer, None, (first, rest))
        given, placeholder = [], None
        if row.key == PLACEHOLDER:
            placeholder = self._placeholder(row, seed)
            given = [f"objective.tokenizer={placeholder}"]
        network, spent = self.run(row, seed, "run", row.recipe, given, self.minutes)
        return Trained(network, None, placeholder, (spent,))

    def run(
        self, row: Row, seed: int, part: str, recipe: str, own: list[str], minutes: float
    ) -> tuple[RunFolder, Spent]:
        """Start or resume one run; returns it when finished."""
        home = self.home(row, seed)
        run, record = home / part, home / f"{part}.json"
        if (spent := _read_spent(record)) is None:
            words = (*self.words[recipe], *own)
            task = Task(recipe, words, self.is_smoke, seed, minutes)
            length = home.parent / f"{part}_length.json"
            updates = self._length(task, length, home / "rate")["updates"]
            home.mkdir(parents=True, exist_ok=True)
            command = task.command(run, self.shards, updates, max(1, updates // POINTS))
            # Only the last export is evaluated.
            spent = _run_counted([*command, f"export.every_steps={updates}"], updates, record)
        return RunFolder(run), spent

    def _length(self, task: Task, file: Path, scratch: Path) -> dict[str, Any]:
        """The number of steps of a row's runs, found by the first of them."""
        if file.is_file():
            return json.loads(file.read_text())
        found: dict[str, Any] = {"updates": _SMOKE_UPDATES}
        if not self.is_smoke:
            rate = measure_rate(task, scratch, self.shards)
            updates = count_updates(rate.per_cpu_second, CORES * task.minutes)
            found = {"updates": updates, **rate._asdict()}
            cpu_minutes = updates / rate.per_cpu_second / 60
            print(f"\n{updates:,} steps take about {cpu_minutes:.1f} CPU minutes")
        found |= {"date": time.strftime("%Y-%m-%d"), "machine": self.machine}
        _write(file, found)
        return found

    def _placeholder(self, row: Row, seed: int) -> Path:
        """The export of a tokenizer that has learned nothing: random encoder and codes."""
        export = self.home(row, seed) / "placeholder"
        if not (export / "backbone.json").is_file():
            shards = open_shards(str(self.shards))
            config = _without_teacher(self.read_config(TOKENIZER))
            write_placeholder(export, config, shards.num_samples, shards.fingerprint, seed)
        return export


def _without_teacher(config: RunConfig) -> RunConfig:
    """A tokenizer's config without a teacher."""
    objective = config.objective.model_copy(update={"target": "pixels", "teacher": ""})
    return config.model_copy(update={"objective": objective})


def write_placeholder(
    export: Path, config: RunConfig, num_images: int, fingerprint: str, seed: int
) -> None:
    """Write a newly initialized tokenizer as an export, as large as a trained one would be.

    Args:
        export: Its folder.
        config: Of a tokenizer's run.
        num_images: Number of images in the data, from which the number of codes follows.
        fingerprint: That of the data.
        seed: Of encoder and codes.
    """
    import torch

    from ssl_vit.exports.folder import ExportInfo, write_export
    from ssl_vit.models.build import build_backbone
    from ssl_vit.objectives.tokenizer.config import TokenizerConfig
    from ssl_vit.objectives.tokenizer.network import TokenizerNetwork
    from ssl_vit.run.given import settle_objective

    config, _ = settle_objective(config, num_images)
    assert isinstance(config.objective, TokenizerConfig)
    codes = config.objective.codes(config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TokenizerNetwork(build_backbone(config.backbone), codes)
    network.codebook.started.fill_(1)
    state = {"backbone": network.encoder.state_dict(), "tokenizer": network.state_dict()}
    write_export(
        export, state, ExportInfo.of_run(config, fingerprint), {"tokenizer": {"codes": codes}}
    )


def last_tenth(lines: list[dict[str, Any]], *names: str) -> tuple[float, ...]:
    """Means of logged values over the last tenth of a run's steps.

    Args:
        lines: Those of `metrics.jsonl`, at least one.
        names: Of the values.
    """
    chosen = lines[-max(1, len(lines) // 10) :]
    return tuple(fmean(line[name] for line in chosen) for name in names)


def read_last_tenth(run: RunFolder, *names: str) -> tuple[float, ...]:
    """As :func:`last_tenth`, of a run's log."""
    return last_tenth(read_metrics(run.metrics), *names)


def _run_counted(words: list[str], updates: int, record: Path) -> Spent:
    """Run `ssl-vit …` and add what it used to the record, also if it is stopped."""
    before = _children_seconds()
    is_finished = False
    try:
        run_command(*words)
        is_finished = True
    finally:
        earlier = _read_record(record)
        spent = replace(
            earlier,
            steps=updates,
            cpu_seconds=earlier.cpu_seconds + _children_seconds() - before,
            starts=earlier.starts + 1,
        )
        _write(record, {**vars(spent), "is_finished": is_finished})
    return spent


def _read_record(file: Path) -> Spent:
    if not file.is_file():
        return Spent(0, 0.0, 0)
    found = json.loads(file.read_text())
    return Spent(found["steps"], found["cpu_seconds"], found["starts"])


def _read_spent(file: Path) -> Spent | None:
    """What a finished run took; None if it is not finished."""
    if file.is_file() and json.loads(file.read_text())["is_finished"]:
        return _read_record(file)
    return None


def _children_seconds() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1) + "\n")
