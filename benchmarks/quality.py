"""Quality of the objectives on a small machine: k-NN and linear probe along a run.

    python benchmarks/quality.py [--data elpv fashion-mnist] [--recipes NAME …] [--minutes 40]
        [--set RECIPE:path=value …] [--seeds 0 …] [--work quality] [--fashion FOLDER] [--smoke]
    python benchmarks/quality.py --only beit|finetune [--rows ROW …] [--minutes 10] …

For each data set (2,624 solar cells; 6,000 images of Fashion-MNIST and 1,000 test images) and each
recipe: measure the rate, pre-train with `ssl-vit pretrain` for the given minutes, evaluate ten
exports by the protocols of `ssl-vit eval`, and compare them with raw pixels, the untrained network
and EfficientNet-Lite0's ImageNet features. Ends with a table per data set and the requirements that
are met or not. If interrupted, run the same command again to resume.

`--only beit` compares targets for masked patches instead, `--only finetune` fine-tuning with linear
probes, in equal CPU time; see `quality_beit.py` and `quality_finetune.py`.

Needs the extra `bench`: pip install -e ".[bench]".
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality_beit import MINUTES as BEIT_MINUTES
from quality_beit import measure as measure_beit
from quality_finetune import measure as measure_finetuning
from quality_runs import (
    POINTS,
    Task,
    count_alarms,
    read_course,
    read_length,
    train,
    words_by_recipe,
)
from quality_sets import DataSet, find_sets
from quality_table import Outcome, Point, Score, table, verdicts
from timing import describe_machine

from ssl_vit.config import to_yaml
from ssl_vit.distributed import compute_beside_workers
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder

if TYPE_CHECKING:
    from quality_scores import Images, ScoreBook

_ONLY = ("beit", "finetune")
_SETS = ("elpv", "fashion-mnist")
_MINUTES = 40.0
_RECIPES = ("mae_small_data", "dinov2_small_data")
_PIXELS, _RANDOM = "raw pixels", "random initialization"
_IMAGENET = "EfficientNet-Lite0, ImageNet"
_LEGEND = (
    "Minutes are training time only; loss is the mean since the previous export. Whole images; "
    "k-NN with the best k on the test images, in every row."
)


@dataclass(frozen=True)
class Baselines:
    """Baselines of the runs, each evaluated once."""

    rows: list[tuple[str, Score]]
    """Rows of the table: (name, score)."""
    untrained: dict[str, Score]
    """Scores of the untrained networks, by recipe."""


def main() -> int:
    """Run the benchmark; exit code 0 when done, 2 for a user's mistake, 130 when stopped."""
    try:
        arguments = _read_arguments()
        if arguments.only == "finetune":
            measure_finetuning(arguments)
        elif arguments.only == "beit":
            measure_beit(arguments)
        else:
            _measure(arguments)
    except UserError as error:
        print(f"error: {error.problem}\nfix:   {error.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    tasks = _read_tasks(arguments)
    work = arguments.work.absolute()
    sets = find_sets(arguments.data, arguments.fashion, work)
    compute_beside_workers()
    description = describe_machine(_device())
    print(description)
    machine = description.splitlines()[0].removeprefix("machine").strip()
    hours = len(sets) * len(tasks) * arguments.minutes / 60
    print(
        f"plan      data sets: {len(sets)}, runs on each: {len(tasks)}, minutes each: "
        f"{arguments.minutes:g}; {hours:.1f} hours in all, and {POINTS} evaluations per run"
    )
    reports = [_measure_set(data, work / name, tasks, machine) for name, data in sets.items()]
    report = "\n\n".join(reports)
    print(f"\n{report}")
    (work / "report.md").write_text(report + "\n")
    print(f"\nsaved to {work / 'report.md'}; all numbers are in {work}/SET/RUN/result.json")


def _measure_set(data: DataSet, folder: Path, tasks: list[Task], machine: str) -> str:
    """Run everything on one data set; returns its table and verdicts as Markdown."""
    from quality_scores import Images, ScoreBook

    print(f"\n== {data.title}", flush=True)
    train_shards, test_shards = data.pack(folder)
    images = Images.open(train_shards, test_shards)
    configs = {task.recipe: task.read_config() for task in tasks}
    baselines = _find_baselines(images, ScoreBook(folder / "baselines.json"), configs)
    several = len({task.seed for task in tasks}) > 1
    outcomes, begun = [], []
    for task in tasks:
        print(f"\n== {data.title}: {task.folder_name}", flush=True)
        home = folder / task.folder_name
        home.mkdir(exist_ok=True)
        run = train(task, home, train_shards, machine)
        outcome = Outcome(
            f"{task.recipe}, seed {task.seed}" if several else task.recipe,
            tuple(_find_points(run, images, ScoreBook(home / "scores.json"))),
            baselines.untrained[task.recipe],
            count_alarms(run),
            configs[task.recipe].objective.name == "dino",
        )
        length = read_length(home)
        _write_result(home / "result.json", task, outcome, length)
        outcomes.append(outcome)
        begun.append(
            f"{outcome.name}: {length['updates']:,} steps in {outcome.points[-1].minutes:.1f} "
            f"minutes, started {length['date']} on {length['machine']}."
        )
    sizes = f"{images.train.num_samples:,} images, {images.test.num_samples:,} test images"
    lines = [f"**{data.title}** ({sizes})", ""]
    lines += table(baselines.rows, outcomes)
    judged = verdicts(data.title, data.requirement, outcomes, images.test.num_samples)
    lines += ["", _LEGEND, "", *(f"* {line}" for line in (*begun, *judged))]
    return "\n".join(lines)


def _find_baselines(
    images: "Images", book: "ScoreBook", configs: dict[str, RunConfig]
) -> Baselines:
    """Baselines of all recipes; recipes with the same network and input share theirs.

    Args:
        images: The data set.
        book: Scores found so far.
        configs: Configs by recipe.
    """
    from quality_scores import has_imagenet

    sizes = {config.backbone.image_size for config in configs.values()}
    rows = []
    for size in sorted(sizes):
        name = _PIXELS if len(sizes) == 1 else f"{_PIXELS}, at {size} pixels"
        find = partial(images.of_pixels, size)
        rows.append((name, book.of(f"{_PIXELS} {size}", name, find)))
    untrained: dict[str, Score] = {}
    sharers: dict[str, list[str]] = {}
    for recipe, config in configs.items():
        network = f"{to_yaml(config.backbone)}{config.data.pixel_mean}{config.data.pixel_std}"
        key = f"{_RANDOM} {hashlib.sha256(network.encode()).hexdigest()[:12]}"
        find = partial(images.of_untrained, config)
        untrained[recipe] = book.of(key, f"{_RANDOM} of {recipe}", find)
        sharers.setdefault(key, []).append(recipe)
    for recipes in sharers.values():
        name = _RANDOM if len(sharers) == 1 else f"{_RANDOM} of {', '.join(recipes)}"
        rows.append((name, untrained[recipes[0]]))
    if has_imagenet():
        rows.append((_IMAGENET, book.of(_IMAGENET, _IMAGENET, images.of_imagenet)))
    else:
        print(f'{_IMAGENET}: skipped; to include it: pip install -e ".[bench]"')
    return Baselines(rows, untrained)


def _find_points(run: RunFolder, images: "Images", book: "ScoreBook") -> Iterator[Point]:
    for number, facts in enumerate(read_course(run), start=1):
        export = run.exports / f"step_{facts['step']:08d}"
        what = f"export {number} of {POINTS}, step {facts['step']:,}"
        score = book.of(export.name, what, partial(images.of_export, export))
        yield Point(**facts, score=score)


def _write_result(file: Path, task: Task, outcome: Outcome, length: dict[str, Any]) -> None:
    found = {**asdict(task), **length, **asdict(outcome)}
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(found, indent=1) + "\n")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_tasks(arguments: argparse.Namespace) -> list[Task]:
    """A task per recipe and seed.

    Raises:
        UserError: A setting is for none of the given recipes, or does not validate.
    """
    recipes = list(dict.fromkeys(arguments.recipes or _RECIPES))
    words = words_by_recipe(arguments.set, recipes)
    tasks = [
        Task(recipe, tuple(words[recipe]), arguments.smoke, seed, arguments.minutes)
        for recipe in recipes
        for seed in dict.fromkeys(arguments.seeds or [0])
    ]
    for task in tasks:
        task.read_config()
    return tasks


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=_SETS, default=_SETS, help="data sets")
    parser.add_argument(
        "--only", choices=_ONLY, help="compare masked patches' targets, or fine-tuning"
    )
    parser.add_argument("--rows", nargs="+", help="with --only: rows of the table; default: all")
    parser.add_argument(
        "--recipes", nargs="+", help=f"see `ssl-vit recipes`; default: {', '.join(_RECIPES)}"
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        help=f"training minutes per run, default {_MINUTES:g}; with --only, CPU time of a row in\n"
        f"minutes of two busy cores, default {BEIT_MINUTES:g}",
    )
    parser.add_argument(
        "--set",
        metavar="RECIPE:path=value",
        action="append",
        default=[],
        help="setting of one recipe; may be repeated.\n"
        "schedule.warmup is scaled with the length of the run",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help="one run per seed, default 0; with --only, 0 1 2 for some rows",
    )
    parser.add_argument("--work", type=Path, default=Path("quality"), help="folder for all output")
    parser.add_argument("--fashion", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--smoke", action="store_true", help="shrink the recipes, for a trial")
    arguments = parser.parse_args()
    if arguments.only is None and arguments.rows:
        parser.error("--rows needs --only")
    if arguments.only is not None and arguments.recipes:
        parser.error("--only has recipes of its own: choose with --rows")
    if arguments.minutes is None:
        arguments.minutes = BEIT_MINUTES if arguments.only else _MINUTES
    return arguments


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a length of time")
    return number


if __name__ == "__main__":
    sys.exit(main())
