"""`ssl-vit demo`: the whole workflow on real images, by the commands a user types. Each is printed,
then run.

ELPV: 2,624 photographs of solar cells (Deitsch et al. 2019, arXiv 1807.02894; Buerhop-Lutz et al.
2018), a quarter of them held out by a hash of the file name. Classes: functional or defective ×
mono- or polycrystalline.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.training.metrics_file import read_metrics

# Training time, whatever the processor; the whole demo then takes less than ten minutes.
MINUTES, WARMUP_MINUTES = 4, 0.4


def run_demo(folder: Path) -> None:
    """Make everything below ``folder``; an interrupted demo resumes where it stopped.

    Raises:
        UserError: The images are not installed, or a command failed.
    """
    began = time.monotonic()
    source = find_elpv()
    images, shards, run = folder / "images", folder / "shards", folder / "run"
    print(f"1. A folder of images: {images}/{{train,val}}/CLASS/*.png")
    lay_out_images(source, images)
    print("\n2. Into shards")
    for part in ("train", "val"):
        if not (shards / part / "index.json").is_file():
            _run("shards", "pack", str(images / part), str(shards / part))
    train, val = str(shards / "train"), str(shards / "val")
    print(f"\n3. Pre-training: a masked autoencoder, no labels, {MINUTES} minutes")
    _run(
        *("pretrain", "mae_small_data", "--run", str(run), f"data.shards={train}"),
        *("--minutes", str(MINUTES)),
        *("objective.vertical_flip=0.5", f"schedule.warmup={WARMUP_MINUTES}"),
    )
    print("\n4. Evaluating the backbone: labels are used for the first time")
    for protocol in ("knn", "linear"):
        # The usual crop would cut off the edges of the cell.
        _run("eval", protocol, str(run), "--train", train, "--test", val, "--crop-ratio", "1")
    _summary(run, time.monotonic() - began)


def find_elpv() -> Path:
    """Folder of the installed data set.

    Raises:
        UserError: The `demo` extra is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError(
            "the demo's images (package elpv-dataset) are not installed",
            'pip install "ssl-vit[demo]", or `make demo` in a clone',
        )
    return Path(spec.origin).parent / "data"


def lay_out_images(source: Path, images: Path) -> None:
    """Copy the photographs into `{train,val}/CLASS/`, a usual layout of image folders.

    Args:
        source: Holds `labels.csv` (path, defect probability and cell type on each line) and the
            images it names.
        images: Created; files that are already there are left.
    """
    for line in (source / "labels.csv").read_text().splitlines():
        name, probability, kind = line.split()
        path = Path(name)
        state = "functional" if float(probability) < 0.5 else "defective"
        part = "val" if zlib.crc32(path.name.encode()) % 4 == 0 else "train"
        target = images / part / f"{kind}_{state}" / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                shutil.copyfile(source / path, partial)


def summary_rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """(features, accuracy in % by each protocol) from the evaluations' JSON, in their order."""
    return [
        (name, *(f"{100 * result['rows'][name]['accuracy']:.1f}" for result in results))
        for name in results[0]["rows"]
    ]


def _run(*words: str) -> None:
    print(f"$ ssl-vit {' '.join(words)}", flush=True)
    command = subprocess.Popen([sys.executable, "-m", "ssl_vit", *words])
    while True:
        try:
            code = command.wait()
            break
        except KeyboardInterrupt:
            continue  # the command got it too, and is saving
    if code:
        raise UserError(
            f"`ssl-vit {words[0]}` ended with exit code {code}",
            "see the error above; run `ssl-vit demo` again to continue from this step",
        )


def _summary(run: Path, seconds: float) -> None:
    results = [
        json.loads(sorted((run / "evals").glob(f"{protocol}_*.json"))[-1].read_text())
        for protocol in ("knn", "linear")
    ]
    metrics = read_metrics(run / "metrics.jsonl")
    wait = 100 * sum(line["data_wait"] for line in metrics) / len(metrics)
    table = Table(title="ELPV solar cells, accuracy in % on held-out images")
    for column, side in (("features", "left"), ("k-NN", "right"), ("linear probe", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type] - a Literal, not any str
    for row in summary_rows(results):
        table.add_row(*row)
    print()
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    picture = sorted((run / "panels").glob("reconstruction_*.png"))[-1]
    console.print(
        f"{len(metrics):,} steps, data-wait {wait:.1f} %, {seconds / 60:.1f} minutes in all.\n\n"
        "What this shows: every step from a folder to a benchmark works on this machine, and a\n"
        "few minutes of training without labels already moved the features.\n"
        "What it does not show: how good the method is. Published runs train a larger network on\n"
        "a thousand times more images for days; raw pixels are hard to beat in minutes.\n\n"
        f"run folder       {run}\n"
        f"reconstructions  {picture}   (original | what the encoder saw | reconstruction)\n"
        f"curves           tensorboard --logdir {run / 'tensorboard'}\n"
        "your own images  ssl-vit shards pack IMAGES SHARDS, then\n"
        "                 ssl-vit pretrain mae_small_data --run RUN data.shards=SHARDS",
        markup=False,
    )
