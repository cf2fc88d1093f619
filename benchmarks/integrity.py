"""Cost of verifying data: at the start of a command, and in the prefetcher during a run.

    python benchmarks/integrity.py [--quick]

Start: a process opens a set of a million records, with and without verifying their sha256, in
turns. Prefetcher: the CPU time of the process that hashes shards and checks them again, relative to
the wall time of the loader at full speed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from large_index import make_set
from photographs import write_photographs
from timing import Spent, describe_machine, interleave, positive, processor_seconds, with_defaults

from ssl_vit.data.access_plan import TrainingAccess
from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.loader import LoadedBatches, LoaderSettings, UpdateSampler, build_loader
from ssl_vit.data.order import SampleOrder
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.data.sources import open_shards
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_views
from ssl_vit.objectives.config import MaeConfig
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions

_BATCH = 64
_STEPS = 10**9  # more than will run
_OPEN = (
    "import sys\n"
    "from ssl_vit.data.sources import open_shards\n"
    "open_shards(sys.argv[1], verifies_records=sys.argv[2] == 'True')\n"
)


def main() -> None:
    """Print the machine, then the results of both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--records", type=positive, help="records in the set to open")
    parser.add_argument("--pairs", type=positive, help="turns per side")
    parser.add_argument("--images", type=positive, help="images in the set to read")
    parser.add_argument("--seconds", type=positive, help="seconds of reading")
    full = {"records": 1_000_000, "pairs": 15, "images": 2_000, "seconds": 120}
    quick = {"records": 100_000, "pairs": 3, "images": 200, "seconds": 15}
    arguments = parser.parse_args()
    with_defaults(arguments, quick if arguments.quick else full)
    print(describe_machine("cpu"), flush=True)
    with tempfile.TemporaryDirectory(prefix="ssl-vit-benchmark-") as name:
        measure_start(Path(name), arguments.records, arguments.pairs)
        measure_prefetcher(Path(name), arguments.images, arguments.seconds)


def measure_start(scratch: Path, num_records: int, pairs: int) -> None:
    """Print the seconds of a process that opens a set, with and without verifying its records."""
    folder = make_set(scratch / "records", num_records)
    sides = [partial(_open, folder, verifies) for verifies in (False, True)]
    for side in sides:
        side()
    turns = interleave(*sides, pairs)
    without, with_check = turns.walls
    added = [b.wall - a.wall for a, b in zip(turns.first, turns.second, strict=True)]
    print(
        f"start     {num_records:,} records: a process opens them in {without:.2f} s unverified, "
        f"in {with_check:.2f} s verified: {turns.describe()}\n"
        f"          verifying adds {statistics.median(added):.3f} s "
        f"({min(added):.3f}–{max(added):.3f})   (target < 1 s)",
        flush=True,
    )


def _open(folder: Path, verifies: bool) -> Spent:
    wall, processor = time.perf_counter(), processor_seconds()
    subprocess.run([sys.executable, "-c", _OPEN, folder, str(verifies)], check=True)
    return Spent(time.perf_counter() - wall, processor_seconds() - processor)


def measure_prefetcher(scratch: Path, num_images: int, seconds: int) -> None:
    """Print the prefetcher's share of a run: of the whole run, and after its first quarter."""
    write_photographs(scratch / "images", num_images, (500, 375), [], 0)
    pack_images(scratch / "images", scratch / "shards", PackOptions(shard_bytes=2**20))
    shards = open_shards(scratch / "shards")
    order = SampleOrder([s.num_samples for s in shards.shards], _BATCH, _BATCH, 8192, 0)
    lanes = range(_BATCH)
    workers = max(1, (os.cpu_count() or 2) - 1)
    loader = build_loader(
        TrainingBatches(shards, build_views(MaeConfig(), VitConfig()), 0),
        UpdateSampler(order, lanes, _BATCH, 0, _STEPS),
        _BATCH,
        LoaderSettings(workers, prefetch=2, pin_memory=False),
    )
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, TrainingAccess(order, lanes, _STEPS))
    process = prefetcher._process
    assert process is not None
    batches = LoadedBatches(loader, prefetcher, lambda batch: batch)
    marks = []
    began = time.perf_counter()
    for end in (seconds / 4, seconds):
        while time.perf_counter() - began < end:
            next(batches)
        used = psutil.Process(process.pid).cpu_times()
        marks.append(Spent(time.perf_counter() - began, used.user + used.system))
    batches.finish()
    batches.close()
    early, late = marks
    share = (late.processor - early.processor) / (late.wall - early.wall)
    print(
        f"prefetcher  {len(shards.shards):,} shards of {shards.num_bytes / 2**20:,.0f} MiB, all "
        f"in use: {late.processor:.2f} s of CPU time in {late.wall:.0f} s "
        f"({late.processor / late.wall:.2%}), of which {early.processor:.2f} s at startup and in "
        f"the first {early.wall:.0f} s\n"
        f"          afterwards {share:.2%} of the time   (target ≤ 1 %)",
        flush=True,
    )


if __name__ == "__main__":
    main()
