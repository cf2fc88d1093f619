"""The loaders that `data_loading.py` compares: ours and common alternatives.

All make the same crops (random resized, bicubic, flipped) as uint8 batches in a DataLoader with one
worker, so the rates are per core. All files are in the page cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timing import Spent, Turn, processor_seconds
from torch import Tensor

from ssl_vit.data.access_plan import TrainingAccess
from ssl_vit.data.crops import Crop, random_resized_crop_box
from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.loader import LoadedBatches, LoaderSettings, UpdateSampler, build_loader
from ssl_vit.data.order import SampleOrder
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.views import Sample

PREFETCH = 4
_SEED = 0
# Batches before the clock starts: a long run has allocated its memory and filled its queue.
_WARM = PREFETCH + 2


@dataclass(frozen=True)
class Task:
    """The crops of an image: (number, pixels per side, range of areas) for each kind."""

    name: str
    crops: tuple[tuple[int, int, tuple[float, float]], ...]


ONE_CROP = Task("one 224 crop", ((1, 224, (0.2, 1.0)),))
MULTI_CROP = Task("2 × 224 + 8 × 96", ((2, 224, (0.32, 1.0)), (8, 96, (0.05, 0.32))))


class Views(NamedTuple):
    """A task, as views for our data workers."""

    task: Task

    @property
    def crop_sizes(self) -> list[tuple[int, tuple[int, int]]]:
        return [(count, (size, size)) for count, size, _ in self.task.crops]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> "Draw":
        crops = []
        for count, size, area in self.task.crops:
            for _ in range(count):
                box = random_resized_crop_box(height, width, area, (3 / 4, 4 / 3), rng)
                crops.append(Crop(box, (size, size), across=rng.random() < 0.5))
        return Draw(crops)

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence["Draw"], samples: Sequence[Sample]
    ) -> tuple[Tensor, ...]:
        kind = Pair if len(crops) > 1 else Single
        return kind(*crops)  # type: ignore[call-arg] - as many as there are sizes

    def show(self, crops: Sequence[Tensor], draw: "Draw") -> list[Tensor]:
        return []


class Draw(NamedTuple):
    crops: list[Crop]


class Single(NamedTuple):
    images: Tensor


class Pair(NamedTuple):
    large: Tensor
    small: Tensor


@dataclass(frozen=True)
class Workload:
    """The work of one turn, the same for every loader."""

    task: Task
    batch: int
    batches: int
    """Number of timed batches."""

    @property
    def num_images(self) -> int:
        """Images per turn."""
        return self.batch * self.batches


def ours(shards: "ShardSet", work: Workload) -> Turn:
    """Shards, order, decoding and prefetcher, combined as in `ssl_vit.run.pretrain`."""
    order = SampleOrder(
        [shard.num_samples for shard in shards.shards], work.batch, work.batch, 8192, _SEED
    )
    lanes = range(work.batch)

    def begin() -> LoadedBatches:
        total = work.batches + _WARM
        loader = build_loader(
            TrainingBatches(shards, Views(work.task), _SEED),
            UpdateSampler(order, lanes, work.batch, 0, total),
            work.batch,
            LoaderSettings(workers=1, prefetch=PREFETCH, pin_memory=False),
        )
        prefetcher = ShardPrefetcher(
            shards.shards, shards.cache, TrainingAccess(order, lanes, total), 0, False
        )
        return LoadedBatches(loader, prefetcher, lambda batch: batch)

    return _turn(begin, work)


def image_folder(folder: Path, work: Workload) -> Turn:
    """As in the code of MAE and DINOv2: ImageFolder, Pillow, torchvision's transforms."""
    _import_torchvision()
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(folder), transform_of(work.task))
    total = (work.batches + _WARM) * work.batch
    loader = DataLoader(
        images,
        batch_size=work.batch,
        sampler=RandomSampler(images, num_samples=total),
        num_workers=1,
        prefetch_factor=PREFETCH,
    )
    return _turn(lambda: iter(loader), work)


def stock_webdataset(tars: Sequence[Path], work: Workload) -> Turn:
    """The same shards through webdataset's own pipeline, decoded by Pillow."""
    _import_torchvision()
    import webdataset
    from torch.utils.data import DataLoader

    pipeline = (
        webdataset.WebDataset([str(path) for path in tars], resampled=True, shardshuffle=False)
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform_of(work.task))
        .with_epoch((work.batches + _WARM) * work.batch)
    )
    loader = DataLoader(pipeline, batch_size=work.batch, num_workers=1, prefetch_factor=PREFETCH)
    return _turn(lambda: iter(loader), work)


def decoding_alone(shards: "ShardSet", work: Workload) -> Turn:
    """An upper limit for full decoding: simplejpeg on bytes in memory, in this process."""
    import simplejpeg

    some = min(shards.num_samples, work.num_images)
    files = [shards.read(number) for number in range(some)]

    def turn() -> Spent:
        wall, processor = time.perf_counter(), processor_seconds()
        for number in range(work.num_images):
            simplejpeg.decode_jpeg(files[number % some], colorspace="RGB")
        return Spent(time.perf_counter() - wall, processor_seconds() - processor)

    return turn


class transform_of:  # noqa: N801 - used as a function; a class, because it must pickle
    """Torchvision's transforms for a task, from one Pillow image."""

    def __init__(self, task: Task) -> None:
        from torchvision.transforms import (
            Compose,
            InterpolationMode,
            PILToTensor,
            RandomHorizontalFlip,
            RandomResizedCrop,
        )

        bicubic = InterpolationMode.BICUBIC
        self.crops = [
            Compose(
                [
                    RandomResizedCrop(size, scale=area, interpolation=bicubic),
                    RandomHorizontalFlip(),
                    PILToTensor(),
                ]
            )
            for count, size, area in task.crops
            for _ in range(count)
        ]

    def __call__(self, image: Any) -> list[Tensor]:
        return [crop(image) for crop in self.crops]


def _turn(begin: Callable[[], Any], work: Workload) -> Turn:
    def turn() -> Spent:
        processor = processor_seconds()
        arriving = begin()
        for _ in range(_WARM):
            next(arriving)
        began = time.perf_counter()
        for _ in range(work.batches):
            next(arriving)
        wall = time.perf_counter() - began
        if isinstance(arriving, LoadedBatches):
            arriving.close()
        else:
            arriving._shutdown_workers()
        # Closing the loader waits for its worker, whose CPU time counts only then.
        return Spent(wall, processor_seconds() - processor)

    return turn


def _import_torchvision() -> None:
    from ssl_vit.models.torchvision_ops import define_missing_ops

    define_missing_ops()
    assert torch.get_num_threads() == 1
