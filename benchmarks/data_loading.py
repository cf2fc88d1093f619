"""How fast do training samples come: our shards and views against torchvision's ImageFolder.

    python benchmarks/data_loading.py [--quick] [--images FOLDER]

Both sides make 224-pixel random resized crops (area 0.2 to 1, bicubic) with flips, as uint8 batches
of 64 out of a DataLoader with one worker, so the rates are those of one core. Files are in the
system's cache for both. Ours also draws MAE's masks.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photographs import write_photographs
from timing import (
    Spent,
    Turn,
    describe_machine,
    interleave,
    positive,
    processor_seconds,
    with_defaults,
)

from ssl_vit.distributed import set_library_environment

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ssl_vit.data.shards import ShardSet

_BATCH = 64
_CROP = 224
_PREFETCH = 4
_LANES = 16
_SEED = 0


def main() -> None:
    """Print the machine, the images and the comparison."""
    arguments = _read_arguments()
    set_library_environment("cpu")
    import torch

    torch.set_num_threads(1)
    print(describe_machine("cpu"), flush=True)
    with tempfile.TemporaryDirectory(prefix="ssl-vit-benchmark-") as scratch:
        folder = arguments.images
        if folder is None:
            folder = Path(scratch) / "images"
            write_photographs(folder, arguments.count, _SEED)
        shards = _pack(folder, Path(scratch) / "shards")
        num_bytes = sum(shard.num_bytes for shard in shards.shards)
        print(
            f"images    {shards.num_samples:,} of {num_bytes / shards.num_samples / 1e3:.0f}"
            f" KB on average, {arguments.images or 'generated'}",
            flush=True,
        )
        compare(folder, shards, arguments.rounds, arguments.batches)


def compare(folder: Path, shards: "ShardSet", rounds: int, batches: int) -> None:
    """Let both loaders take turns at the same number of batches, and print the rates.

    Args:
        folder: The images that ``shards`` holds, one sub-folder a class.
        rounds: Turns of each.
        batches: Batches a turn.
    """
    # One more batch than is timed: the clock starts when the first has come, workers and all.
    ours, theirs = (
        _turn(loader, batches)
        for loader in (our_loader(shards, batches + 1), torchvision_loader(folder, batches + 1))
    )
    ours()
    theirs()
    measured = interleave(ours, theirs, rounds)
    images = batches * _BATCH
    print(
        f"loading   ours {images / measured.walls[0]:,.0f} images/s, ImageFolder "
        f"{images / measured.walls[1]:,.0f} images/s, one worker each: ours is "
        f"{measured.describe()} as fast   (target ≥ 1.80×)"
    )
    print(
        f"limit     {decode_rate(shards, images):,.0f} images/s if decoding were all (simplejpeg)"
    )


def our_loader(shards: "ShardSet", batches: int) -> "DataLoader[Any]":
    """Shards, sample order and MAE's views, as `ssl_vit.pretrain` puts them together."""
    from ssl_vit.data.dataset import TrainingDataset
    from ssl_vit.data.loader import UpdateSampler, build_loader
    from ssl_vit.data.order import SampleOrder
    from ssl_vit.models.config import BackboneConfig
    from ssl_vit.objectives.build import build_views
    from ssl_vit.objectives.config import MaeConfig

    order = SampleOrder([shard.num_samples for shard in shards.shards], _LANES, _BATCH, 8192, _SEED)
    views = build_views(MaeConfig(min_crop_area=0.2), BackboneConfig(image_size=_CROP))
    return build_loader(
        TrainingDataset(shards, views, _SEED),
        UpdateSampler(order, range(_LANES), _BATCH, 0, batches),
        workers=1,
        prefetch=_PREFETCH,
        pin_memory=False,
    )


def torchvision_loader(folder: Path, batches: int) -> "DataLoader[Any]":
    """What most training scripts do: ImageFolder, Pillow, torchvision's transforms."""
    from ssl_vit.models.torchvision_ops import define_missing_ops

    define_missing_ops()
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import (
        Compose,
        InterpolationMode,
        PILToTensor,
        RandomHorizontalFlip,
        RandomResizedCrop,
    )

    bicubic = InterpolationMode.BICUBIC
    crop = RandomResizedCrop(_CROP, scale=(0.2, 1.0), interpolation=bicubic)
    images = ImageFolder(str(folder), Compose([crop, RandomHorizontalFlip(), PILToTensor()]))
    return DataLoader(
        images,
        batch_size=_BATCH,
        sampler=RandomSampler(images, num_samples=batches * _BATCH),
        num_workers=1,
        prefetch_factor=_PREFETCH,
    )


def decode_rate(shards: "ShardSet", images: int) -> float:
    """Images a second that one core decodes out of memory, with nothing done to them."""
    import simplejpeg

    files = [shards.read(number) for number in range(min(images, shards.num_samples))]
    jpegs = [file for file in files if simplejpeg.is_jpeg(file)]
    began = time.perf_counter()
    for file in jpegs:
        simplejpeg.decode_jpeg(file, colorspace="RGB")
    return len(jpegs) / (time.perf_counter() - began)


def _turn(loader: "DataLoader[Any]", batches: int) -> Turn:
    def turn() -> Spent:
        processor = processor_seconds()
        arriving: Iterator[Any] = iter(loader)
        next(arriving)
        began = time.perf_counter()
        came = sum(1 for _ in arriving)
        wall = time.perf_counter() - began
        assert came == batches
        # At the end of an epoch the loader waits for its worker, whose time counts from then on.
        return Spent(wall, processor_seconds() - processor)

    return turn


def _pack(images: Path, shards: Path) -> "ShardSet":
    from ssl_vit.data.shards import ShardSet
    from ssl_vit_data_prep.pack import pack_images

    pack_images(images, shards, 8 * 2**20, workers=1, shuffle_seed=0, overwrite=False)
    return ShardSet.open(shards)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, under 30 s")
    parser.add_argument("--images", type=Path, help="a folder of classes; default: generated ones")
    parser.add_argument("--count", type=positive, help="images to generate")
    parser.add_argument("--rounds", type=positive, help="turns of each side")
    parser.add_argument("--batches", type=positive, help=f"batches of {_BATCH} in a turn")
    arguments = parser.parse_args()
    full = {"count": 600, "rounds": 7, "batches": 16}
    quick = {"count": 128, "rounds": 5, "batches": 5}
    return with_defaults(arguments, quick if arguments.quick else full)


if __name__ == "__main__":
    main()
