"""`quality.py --only beit`: which targets for masked patches teach most in equal CPU time.

BEiT with tokens of pixels, of features of our own MAE and DINOv2, of k-means, of a random network
and of an untrained tokenizer; HOG; and MAE itself. Every row has the same CPU time, that of its
tokenizer's training included. If interrupted, run the same command again to resume. `--smoke`
takes made-up images whatever `--data` says, 20 steps per run, and four rows unless `--rows` is
given.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image
from quality_beit_runs import (
    BEIT,
    CORES,
    RECIPES,
    ROWS,
    SMOKE_ROWS,
    TOKENIZER_SHARE,
    Bench,
    Row,
    Trained,
    read_last_tenth,
)
from quality_beit_table import Codes, Result, table, verdicts
from quality_runs import count_alarms, words_by_recipe
from quality_sets import DataSet, find_sets
from quality_table import Requirement, Score
from timing import describe_machine

from ssl_vit.config import to_yaml
from ssl_vit.distributed import compute_beside_workers
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import find_export, read_tokenizer_info
from ssl_vit.files import replacing
from ssl_vit.run.config import RunConfig

R = TypeVar("R")
MINUTES = 10.0
_SMOKE_IMAGES = {"train": 64, "val": 32}
_LEGEND = (
    f"Each cell with two numbers: k-NN and linear probe, in %. CPU minutes are those that all "
    f"processes of the runs used, start-up included: of the tokenizer (about "
    f"{100 * TOKENIZER_SHARE:.0f} % of a row's time) + of the network. The pre-training of a "
    "tokenizer's teacher (MAE or DINOv2: the row of that name and the same seed) does not count. "
    "Inner block: mean of the patches after two thirds of the blocks. Codes used and perplexity "
    "are those of one step, means over the last tenth of the tokenizer's steps; of the "
    "placeholder, which took none, means over the train images. Explained: the share of the "
    "variation of the tokenizer's targets that its codes explain. Token accuracy: last tenth of "
    "BEiT's steps, beside that of always guessing the commonest token. Whole images; k-NN "
    "with the best k on the test images, in every row."
)


def measure(arguments: argparse.Namespace) -> None:
    """Run the benchmark and print its report.

    Args:
        arguments: Those of `quality.py`.

    Raises:
        UserError: A row or setting does not exist, or a run failed.
    """
    rows = choose(arguments.rows, SMOKE_ROWS if arguments.smoke else None, ROWS)
    words = words_by_recipe(arguments.set, RECIPES)
    work = arguments.work.absolute()
    trial = Bench(work, work, arguments.minutes, words, arguments.smoke, "")
    configs = {recipe: trial.read_config(recipe) for recipe in RECIPES}
    sets, machine = begin(arguments, work)
    runs = count_runs(rows, arguments.seeds, arguments.smoke)
    hours = len(sets) * runs * arguments.minutes / 60
    print(
        f"plan      data sets: {len(sets)}, runs on each: {runs}, each as long as {CORES} cores "
        f"work in {arguments.minutes:g} minutes"
        + ("; as a trial, 20 steps each" if arguments.smoke else f"; {hours:.1f} hours in all")
    )
    reports = []
    for name, data in sets.items():
        print(f"\n== {data.title}", flush=True)
        shards, test = data.pack(work / name)
        folder = work / name / "beit"
        bench = Bench(folder, shards, arguments.minutes, words, arguments.smoke, machine)
        reports.append(_measure_set(data, bench, test, rows, arguments.seeds, configs))
    report = "\n\n".join(reports)
    print(f"\n{report}")
    (work / "beit_report.md").write_text(report + "\n")
    print(
        f"\nsaved to {work / 'beit_report.md'}; all numbers: {work}/SET/beit/ROW/seedN/result.json"
    )


def begin(arguments: argparse.Namespace, work: Path) -> tuple[dict[str, DataSet], str]:
    """The data sets, made-up ones with `--smoke`, and the machine, which is printed.

    Raises:
        UserError: A data set cannot be found.
    """
    if arguments.smoke:
        sets = {"stripes": DataSet("Stripes", Requirement(0.0, rises=False), lay_out_stripes)}
    else:
        sets = find_sets(arguments.data, arguments.fashion, work)
    compute_beside_workers()
    description = describe_machine("cpu")
    print(description)
    return sets, description.splitlines()[0].removeprefix("machine").strip()


def choose(
    keys: Sequence[str] | None, otherwise: Sequence[str] | None, rows: Mapping[str, R]
) -> list[R]:
    """Rows in the order of the table.

    Args:
        keys: Those that were asked for.
        otherwise: Those without `--rows`; None: all.
        rows: Key → row.

    Raises:
        UserError: There is no such row.
    """
    chosen = keys or otherwise or tuple(rows)
    unknown = [key for key in chosen if key not in rows]
    if unknown:
        raise UserError(f"--rows {unknown[0]} is not a row", f"choose from {', '.join(rows)}")
    return [row for key, row in rows.items() if key in chosen]


class Seeded(Protocol):
    """A row of a table."""

    @property
    def num_seeds(self) -> int:
        """Number of runs where `--seeds` is not given."""
        ...


def seeds_of(row: Seeded, given: list[int] | None, is_smoke: bool) -> list[int]:
    """Seeds of a row: those given, or as many as it has by default."""
    if given:
        return list(dict.fromkeys(given))
    return [0] if is_smoke else list(range(row.num_seeds))


def count_runs(rows: list[Row], seeds: list[int] | None, is_smoke: bool) -> int:
    """Number of trained rows and seeds on a data set, teachers that are not shown included."""
    wanted = {(row.key, seed) for row in rows for seed in seeds_of(row, seeds, is_smoke)}
    teachers = {(ROWS[key].teacher, seed) for key, seed in wanted if ROWS[key].teacher}
    return len(wanted | teachers)


def _measure_set(
    data: DataSet,
    bench: Bench,
    test: Path,
    rows: list[Row],
    seeds: list[int] | None,
    configs: dict[str, RunConfig],
) -> str:
    """Run everything on one data set; returns its table and verdicts as Markdown."""
    from quality_beit_scores import ReadoutImages, find_readouts
    from quality_scores import ScoreBook

    images = ReadoutImages.open(bench.shards, test)
    bench.folder.mkdir(parents=True, exist_ok=True)
    book = ScoreBook(bench.folder / "baselines.json")
    size = configs[BEIT].backbone.height_width[0]
    pixels = book.of(f"raw pixels {size}", "raw pixels", partial(images.of_pixels, size))
    untrained: dict[str, dict[str, Score]] = {}
    sharers: dict[str, list[str]] = {}
    for recipe in dict.fromkeys(row.recipe for row in rows):
        config = configs[recipe]
        key = f"untrained {_fingerprint(config)}"
        sharers.setdefault(key, []).append(recipe)
        find = partial(images.readouts_of_untrained, config)
        untrained[recipe] = find_readouts(book, key, f"untrained, {recipe}", find)
    results = []
    for row in rows:
        for seed in seeds_of(row, seeds, bench.is_smoke):
            print(f"\n== {data.title}: {row.title}, seed {seed}", flush=True)
            trained = bench.train(row, seed)
            home = bench.home(row, seed)
            own = ScoreBook(home / "scores.json")
            export = find_export(trained.network.root)
            find = partial(images.readouts_of_export, export)
            scores = find_readouts(own, export.name, f"{row.title}, seed {seed}", find)
            batch = configs[row.recipe].data.global_batch_size
            codes = _codes(trained, home, partial(images.codes_of, images_per_step=batch))
            result = _result(row, seed, trained, scores, untrained[row.recipe], codes)
            _write(home / "result.json", asdict(result) | {"machine": bench.machine})
            results.append(result)
    sizes = f"{images.train.num_samples:,} images, {images.test.num_samples:,} test images"
    lines = [f"**{data.title}** ({sizes})", ""]
    baselines = [(", ".join(each), untrained[each[0]]) for each in sharers.values()]
    lines += table(pixels, baselines, results)
    judged = verdicts(data.title, results, images.test.num_samples)
    return "\n".join([*lines, "", _LEGEND, "", *(f"* {line}" for line in judged)])


def _codes(trained: Trained, home: Path, find: Callable[[Path], Codes]) -> Codes | None:
    """How the tokenizer uses its codes: as its run logged, or measured if there was none."""
    if trained.tokenizer is not None:
        names = ("codes_used", "perplexity", "explained")
        used, perplexity, explained = read_last_tenth(trained.tokenizer, *names)
        size = read_tokenizer_info(trained.tokenizer.root).codes.num
        return Codes(used, perplexity, size, explained)
    if trained.placeholder is None:
        return None
    file = home / "codes.json"
    if not file.is_file():
        _write(file, find(trained.placeholder)._asdict())
    return Codes(**json.loads(file.read_text()))


def _result(
    row: Row,
    seed: int,
    trained: Trained,
    scores: dict[str, Score],
    untrained: dict[str, Score],
    codes: Codes | None,
) -> Result:
    accuracy, unigram = None, None
    if row.recipe == BEIT:
        names = ("token_accuracy", "unigram_accuracy")
        accuracy, unigram = read_last_tenth(trained.network, *names)
    runs = [run for run in (trained.tokenizer, trained.network) if run is not None]
    return Result(
        row.key,
        row.title,
        seed,
        tuple(spent.cpu_seconds / 60 for spent in trained.spent),
        tuple(spent.steps for spent in trained.spent),
        scores,
        untrained,
        codes,
        accuracy,
        unigram,
        sum(count_alarms(run) for run in runs),
    )


def _fingerprint(config: RunConfig) -> str:
    """What an untrained network's scores depend on."""
    network = f"{to_yaml(config.backbone)}{config.data.pixel_mean}{config.data.pixel_std}"
    return hashlib.sha256(network.encode()).hexdigest()[:12]


def lay_out_stripes(images: Path) -> None:
    """Write a few made-up images of two classes, stripes across and down, for a trial."""
    rng = np.random.default_rng(0)
    for part, count in _SMOKE_IMAGES.items():
        for name in ("across", "down"):
            folder = images / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                wave = np.sin((np.arange(32) + rng.integers(8)) * np.pi / 4)
                pixels = np.tile(128 + 80 * wave, (32, 1)) + rng.normal(0, 30, (32, 32))
                pixels = np.clip(pixels if name == "down" else pixels.T, 0, 255).astype(np.uint8)
                with replacing(folder / f"{number:03d}.png") as unfinished:
                    Image.fromarray(pixels).save(unfinished, format="PNG")


def _write(file: Path, values: dict) -> None:
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1) + "\n")
