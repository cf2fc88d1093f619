"""`quality.py --only finetune`: what fine-tuning brings over a linear probe and over training from
scratch, in equal CPU time.

Pre-training is that of `--only beit` (the same runs, if both have one `--work`). A row is
fine-tuned for the same time again by `ssl-vit finetune`'s settings, on all training images; from
scratch it has both times.
Every row is judged by `ssl-vit eval classifier`, which shows linear probe and k-NN of the frozen
start at the same resolution. If interrupted, run the same command again to resume.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from quality_beit import begin, choose, seeds_of
from quality_beit_runs import CORES, RECIPES, ROWS, Bench, Row, Spent
from quality_runs import run_command, words_by_recipe
from quality_sets import DataSet
from quality_table import Score, met, noise

from ssl_vit.exports.folder import find_export
from ssl_vit_eval.finetune import SMALL, plan_finetuning

_FROM_PROBE = (
    *("objective.head=probe", "backbone.drop_path=0"),
    "optimizer.base_learning_rate=1e-4",
)
_LINEAR, _KNN = "frozen, linear probe", "frozen, k-NN"


@dataclass(frozen=True)
class Tuned:
    """One way to a classifier."""

    key: str
    """Name for `--rows` and of its folder."""
    title: str
    """Name in the report."""
    start: str
    """Key of the pre-trained row; empty: random weights."""
    image_size: int
    words: tuple[str, ...] = ()
    """Settings as path=value."""
    num_seeds: int = 1


TUNED = {
    row.key: row
    for row in (
        Tuned("mae-96", "fine-tuned MAE, 96 px", "mae", 96, num_seeds=3),
        Tuned("mae-192", "fine-tuned MAE, 192 px", "mae", 192, num_seeds=3),
        Tuned("mae-192-probe", "… head from the probe", "mae", 192, _FROM_PROBE),
        Tuned("dinov2-192", "fine-tuned DINOv2, 192 px", "dinov2", 192),
        Tuned("beit-192", "fine-tuned BEiT, 192 px", "features-mae", 192),
        Tuned("scratch-192", "from scratch, 192 px", "", 192, num_seeds=3),
    )
}
_SMOKE_ROWS = ("mae-192", "scratch-192")


@dataclass(frozen=True)
class Judged:
    """One row and seed."""

    row: Tuned
    seed: int
    spent: tuple[Spent, ...]
    """Of pre-training, if there was any, and of training with labels."""
    scores: dict[str, Any]
    """The JSON of `ssl-vit eval classifier`."""


def measure(arguments: argparse.Namespace) -> None:
    """Run the benchmark and print its report.

    Args:
        arguments: Those of `quality.py`.

    Raises:
        UserError: A row or setting does not exist, or a run failed.
    """
    rows = choose(arguments.rows, _SMOKE_ROWS if arguments.smoke else None, TUNED)
    words = words_by_recipe(arguments.set, (*RECIPES, SMALL))
    work = arguments.work.absolute()
    sets, machine = begin(arguments, work)
    count = sum(len(seeds_of(row, arguments.seeds, arguments.smoke)) for row in rows)
    print(
        f"plan      data sets: {len(sets)}, rows and seeds on each: {count}, "
        f"{arguments.minutes:g} minutes of {CORES} cores each with labels, and as many of "
        "pre-training for each start and seed"
    )
    reports = []
    for name, data in sets.items():
        shards, test = data.pack(work / name)
        bench = Bench(
            work / name / "beit", shards, arguments.minutes, words, arguments.smoke, machine
        )
        judged = [
            _judge(bench, row, seed, test)
            for row in rows
            for seed in seeds_of(row, arguments.seeds, arguments.smoke)
        ]
        reports.append(_report(data, bench, test, judged))
    report = "\n\n".join(reports)
    print(f"\n{report}")
    (work / "finetune_report.md").write_text(report + "\n")
    print(f"\nsaved to {work / 'finetune_report.md'}")


def _judge(bench: Bench, row: Tuned, seed: int, test: Path) -> Judged:
    print(f"\n== {row.title}, seed {seed}", flush=True)
    before: list[Spent] = []
    minutes, own = bench.minutes, [f"backbone.image_size={row.image_size}"]
    if row.start:
        trained = bench.train(ROWS[row.start], seed)
        before = list(trained.spent)
        export = find_export(trained.network.root)
        size = (row.image_size,)
        plan = plan_finetuning(export, Path("none"), str(bench.shards), size, recipe=SMALL)
        own = [word for word in plan.words if not word.startswith("data.shards=")]
    else:
        minutes += bench.minutes
    # None is held out: the probe beside it learns from all of them too.
    own += ["objective.held_out=0", *row.words]
    place = Row(f"finetune_{row.key}", row.title, SMALL)
    run, spent = bench.run(place, seed, "run", SMALL, own, minutes)
    train = ["--train", str(bench.shards)] if row.start else []
    run_command("eval", "classifier", str(run.root), "--test", str(test), *train)
    newest = max(run.evals.glob("classifier_step_*.json"), key=lambda file: file.stat().st_mtime)
    return Judged(row, seed, (*before, spent), json.loads(newest.read_text()))


def _report(data: DataSet, bench: Bench, test: Path, judged: Sequence[Judged]) -> str:
    from quality_scores import Images, ScoreBook, has_imagenet

    images = Images.open(bench.shards, test)
    num_test = judged[0].scores["test"]["num_images"]
    lines = [
        f"**{data.title}** ({images.train.num_samples:,} images, {num_test:,} test images)",
        "",
        "| | CPU minutes | steps with labels | test | balanced | AUROC | frozen: linear | k-NN |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    if has_imagenet() and not bench.is_smoke:
        book = ScoreBook(bench.folder / "baselines.json")
        score: Score = book.of("imagenet", "EfficientNet-Lite0", partial(images.of_imagenet))
        cells = f"{100 * score.linear:.1f} | {100 * score.knn:.1f}"
        lines.append(f"| EfficientNet-Lite0, ImageNet | – | – | – | – | – | {cells} |")
    lines += [_line(each) for each in judged]
    verdicts = [f"* {line}" for line in _verdicts(data.title, judged, num_test)]
    return "\n".join([*lines, "", *verdicts])


def _line(each: Judged) -> str:
    scores, beside = each.scores, each.scores["beside"]
    minutes = " + ".join(f"{spent.cpu_seconds / 60:.1f}" for spent in each.spent)
    shares = [scores["accuracy"], scores["balanced_accuracy"], scores["auroc"]]
    shares += [beside.get(name, {}).get("accuracy") for name in (_LINEAR, _KNN)]
    cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
    title = f"{each.row.title}, seed {each.seed}"
    return f"| {title} | {minutes} | {each.spent[-1].steps:,} | {' | '.join(cells)} |"


def _verdicts(title: str, judged: Sequence[Judged], num_test: int) -> Iterator[str]:
    tuned, probes = defaultdict(list), defaultdict(list)
    for each in judged:
        tuned[each.row.key].append(each.scores["accuracy"])
        if linear := each.scores["beside"].get(_LINEAR):
            probes[each.row.key].append(linear["accuracy"])
    means = {key: fmean(values) for key, values in tuned.items()}
    linear = {key: fmean(values) for key, values in probes.items()}
    if "mae-192" not in means:
        return
    ours = means["mae-192"]
    probe = max((linear[key] for key in linear if key.startswith("mae-")), default=0.0)
    yield (
        f"{title}: fine-tuned MAE at 192 px {100 * ours:.1f}, linear probe of the same exports "
        f"{100 * probe:.1f} (required: at least that): {met(ours >= probe)}"
    )
    if "scratch-192" in means:
        other = means["scratch-192"]
        yield (
            f"{title}: … from scratch {100 * other:.1f} (required: less): {met(ours > other)}; "
            f"for single runs, less than {100 * noise(ours, other, num_test):.1f} may be noise"
        )
