"""Whether the loader's memory stays flat over 100,000 samples."""

import os
from pathlib import Path

import psutil
from photographs import write_photographs

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

_BATCH = 100
_WORKERS = 2
_IMAGES = 500


def measure_loader_memory(scratch: Path, num_samples: int) -> None:
    """Print the memory of rank and workers after a tenth of the samples and at the end."""
    write_photographs(scratch / "images", _IMAGES, (160, 120), [], 0)
    pack_images(scratch / "images", scratch / "shards")
    shards = open_shards(scratch / "shards")
    order = SampleOrder([s.num_samples for s in shards.shards], _BATCH, _BATCH, 8192, 0)
    lanes, steps = range(_BATCH), num_samples // _BATCH
    views = build_views(MaeConfig(), VitConfig(image_size=96, patch_size=12))
    loader = build_loader(
        TrainingBatches(shards, views, 0),
        UpdateSampler(order, lanes, _BATCH, 0, steps),
        _BATCH,
        LoaderSettings(_WORKERS, prefetch=4, pin_memory=False),
    )
    prefetcher = ShardPrefetcher(shards.shards, shards.cache, TrainingAccess(order, lanes, steps))
    batches = LoadedBatches(loader, prefetcher, lambda batch: batch)
    sizes = {}
    for step in range(steps):
        next(batches)
        if step + 1 in (steps // 10, steps):
            sizes[step + 1] = _own_bytes()
    batches.finish()
    batches.close()
    early, late = sizes[steps // 10], sizes[steps]
    print(
        f"memory    rank, {_WORKERS} data workers and prefetcher after "
        f"{num_samples // 10:,} samples {early / 2**20:.1f} MiB, "
        f"after {num_samples:,} {late / 2**20:.1f} MiB: {(late - early) / 2**20:+.1f} MiB"
        "   (target: flat)",
        flush=True,
    )


def _own_bytes() -> int:
    """Bytes of this process and its children, shared memory counted once."""
    rank = psutil.Process(os.getpid())
    return sum(process.memory_full_info().pss for process in (rank, *rank.children(recursive=True)))
