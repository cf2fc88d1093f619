"""How fast one processor core prepares images for a network: measured on the run's own, or assumed.

torch is imported only to measure.
"""

import time
from typing import NamedTuple

import numpy as np

from ssl_vit.data.shards import ShardSet
from ssl_vit.data.urls import is_local
from ssl_vit.run.config import RunConfig

# Of JPEGs of 500 × 375 pixels, by docs/benchmarks.md, "Loading": to decode one, and for each pixel
# of its crops.
_DECODE, _PER_PIXEL = 460e-6, 4e-9
_BATCH, _SECONDS, _MOST = 16, 1.0, 512


class Feeding(NamedTuple):
    """What one core prepares."""

    images_per_second: float
    num_measured: int
    """Number of images on which that was measured; 0: it is assumed."""


def assumed_feeding(config: RunConfig) -> Feeding:
    """For photographs of the usual size of a data set."""
    seconds = _DECODE + _PER_PIXEL * config.objective.crop_pixels(config.backbone)
    return Feeding(1 / seconds, 0)


def measure_feeding(config: RunConfig, shards: ShardSet) -> Feeding:
    """Prepare images for about a second, as a run's data workers do, in this process; where that
    is not possible, such as with remote shards, what is assumed.
    """
    if not all(is_local(shard.url) for shard in shards.shards):
        return assumed_feeding(config)
    import torch

    from ssl_vit.data.dataset import TrainingBatches
    from ssl_vit.data.order import SampleRef
    from ssl_vit.objectives.build import build_views

    views = build_views(config.objective, config.backbone)
    maker = TrainingBatches(shards, views, config.seed, config.data.values)
    numbers = np.random.default_rng(0).integers(0, shards.num_samples, _MOST).tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker
    spent, done = 0.0, -_BATCH  # the first batch loads libraries
    try:
        for first in range(0, _MOST, _BATCH):
            refs = [SampleRef(number, 0) for number in numbers[first : first + _BATCH]]
            memory = torch.empty(maker.num_bytes(len(refs)), dtype=torch.uint8)
            began = time.process_time()
            loaded = maker.make(refs, memory)
            if loaded.failure is not None or loaded.bad:
                return assumed_feeding(config)
            if done >= 0:
                spent += time.process_time() - began
            done += _BATCH
            if spent > _SECONDS:
                break
    finally:
        torch.set_num_threads(threads)
    return Feeding(done / spent, done) if spent else assumed_feeding(config)
