"""Cost of a set of 100 million samples: opening it, its memory, and the order of its samples."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ssl_vit.data.config import DataConfig
from ssl_vit.data.index_file import (
    SAMPLE_RECORD,
    SAMPLES_FILE,
    Index,
    Shard,
    records_digest,
    write_index,
)
from ssl_vit.data.mixture import build_order
from ssl_vit.data.sources import open_shards

_PER_SHARD = 10_000
_SHARD_BYTES = 500_000_000
_OPENINGS = 5
_BATCH = 256


def measure_large_index(scratch: Path, num_samples: int) -> None:
    """Print the cost of a synthetic set, and that of a small one."""
    large = make_set(scratch / "large", num_samples)
    small = make_set(scratch / "small", 2 * _PER_SHARD)
    seconds = [opening_seconds(large) for _ in range(_OPENINGS)]
    added = worker_bytes(large) - worker_bytes(small)
    costs = {folder: order_seconds(folder) for folder in (small, large)}
    print(
        f"index     {num_samples:,} samples: opens in {statistics.median(seconds):.2f} s "
        f"({min(seconds):.2f}–{max(seconds):.2f})   (target < 1 s)\n"
        f"          adds {added / 2**20:.1f} MiB to a worker that reads 10,000 samples' records"
        "   (target < 50 MiB)\n"
        f"          a step of {_BATCH} samples is drawn in {1e3 * costs[large]:.2f} ms, for "
        f"{2 * _PER_SHARD:,} samples in {1e3 * costs[small]:.2f} ms: "
        f"{costs[large] / costs[small]:.2f}×   (target: flat)",
        flush=True,
    )


def make_set(folder: Path, num_samples: int) -> Path:
    """An index without images: its tars and records are sparse files."""
    folder.mkdir()
    count = num_samples // _PER_SHARD
    records = np.zeros(_PER_SHARD, dtype=SAMPLE_RECORD)
    digest = records_digest(records)
    shards = []
    for number in range(count):
        name = f"shard-{number:06d}.tar"
        with (folder / name).open("wb") as file:
            file.truncate(_SHARD_BYTES)
        shards.append(Shard(name, _PER_SHARD, _SHARD_BYTES, f"{number:064x}", digest))
    index = Index(tuple(shards), (), None)
    write_index(folder, Index(tuple(shards[:1]), (), None), [records])
    header = (folder / SAMPLES_FILE).stat().st_size - records.nbytes
    write_index(folder, index, [])  # the header for all records
    with (folder / SAMPLES_FILE).open("r+b") as file:
        file.truncate(header + num_samples * SAMPLE_RECORD.itemsize)
    return folder


def opening_seconds(folder: Path) -> float:
    """Seconds to open a set in a separate process, without imports."""
    program = (
        "import sys, time\n"
        "from ssl_vit.data.sources import open_shards\n"
        "began = time.perf_counter()\n"
        "shards = open_shards(sys.argv[1])\n"
        "shards.record(shards.num_samples - 1)\n"
        "print(time.perf_counter() - began)\n"
    )
    return float(_run(program, folder))


def worker_bytes(folder: Path) -> int:
    """Resident bytes of a forked worker after reading many records."""
    program = (
        "import os, sys\n"
        "from ssl_vit.data.config import DataConfig\n"
        "from ssl_vit.data.mixture import build_order\n"
        "from ssl_vit.data.sources import open_shards\n"
        "shards = open_shards(sys.argv[1])\n"
        "sizes = [shard.num_samples for shard in shards.shards]\n"
        "order = build_order([sizes], DataConfig(), 0)\n"
        "refs = [ref for step in range(40) for ref in order.update(step, range(64))]\n"
        "if os.fork() == 0:\n"
        "    for ref in refs: shards.record(ref.number)\n"
        "    text = open('/proc/self/smaps_rollup').read().split()\n"
        "    print(1024 * int(text[text.index('Rss:') + 1]), flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    return int(_run(program, folder))


def order_seconds(folder: Path) -> float:
    """Median seconds to compute the order for one step."""
    sizes = [shard.num_samples for shard in open_shards(folder).shards]
    order = build_order([sizes], DataConfig(global_batch_size=_BATCH), 0)
    spent = []
    for step in range(200):
        began = time.perf_counter()
        order.update(step, range(64))
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def _run(program: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, folder],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    ).stdout
