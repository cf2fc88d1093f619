"""Speed and cost of the data pipeline: ours and commonly used alternatives.

    python benchmarks/data_loading.py [--quick] [--part memory|loading|index|packing]

Memory: our loader over 100,000 samples. Loading: our shards and crops compared with torchvision's
ImageFolder with Pillow, webdataset's own pipeline, and libjpeg-turbo decoding alone; one worker
each, the same crops, in turns. Index: a set of 100 million samples. Packing: `tar cf`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from photographs import LARGE, USUAL, find_photographs, write_photographs
from timing import Spent, describe_machine, positive, take_turns, with_defaults

from ssl_vit.distributed import set_library_environment

if TYPE_CHECKING:
    from loaders import Workload
    from PIL import Image

    from ssl_vit.data.shards import ShardSet

_PARTS = ("memory", "loading", "index", "packing")
_SEED = 0


def main() -> None:
    """Print the machine, then every part."""
    arguments = _read_arguments()
    set_library_environment("cpu")
    import torch

    torch.set_num_threads(1)
    print(describe_machine("cpu"), flush=True)
    parts = [arguments.part] if arguments.part else list(_PARTS)
    with tempfile.TemporaryDirectory(prefix="ssl-vit-benchmark-") as name:
        scratch = Path(name)
        if "memory" in parts:
            from loader_memory import measure_loader_memory

            measure_loader_memory(scratch / "memory", arguments.samples)
        if "loading" in parts:
            originals = find_photographs(scratch / "wallpapers")
            _compare_loaders(scratch, originals, arguments)
        if "index" in parts:
            from large_index import measure_large_index

            measure_large_index(scratch, arguments.index_samples)
        if "packing" in parts:
            from pack_against_tar import compare_pack_with_tar

            images = scratch / "to pack"
            write_photographs(images, 200, USUAL, [], _SEED)
            compare_pack_with_tar(images, scratch, arguments.pack_count)


def _compare_loaders(
    scratch: Path, originals: "list[Image.Image]", arguments: argparse.Namespace
) -> None:
    from loaders import MULTI_CROP, ONE_CROP, Workload

    for title, size, count, batch, batches in (
        ("500 × 375", USUAL, arguments.count, 64, arguments.batches),
        ("12 megapixels", LARGE, arguments.large_count, 8, arguments.large_batches),
    ):
        folder = scratch / title
        write_photographs(folder, count, size, originals, _SEED)
        shards = _pack(folder, scratch / f"{title} shards")
        kind = "photographs (Debian's wallpapers)" if originals else "synthetic images"
        print(
            f"\n{title}: {count:,} {kind}, "
            f"{shards.num_bytes / shards.num_samples / 1e3:,.0f} KB on average, one worker each"
        )
        for task in (ONE_CROP, MULTI_CROP):
            work = Workload(task, batch, batches)
            compare(folder, shards, work, arguments.rounds)


def compare(folder: Path, shards: "ShardSet", work: "Workload", rounds: int) -> None:
    """Let all loaders take turns at the same number of images, and print rates and ratios.

    Args:
        folder: The images in ``shards``, one subfolder per class.
        shards: The packed images.
        work: Crops and number of images per turn.
        rounds: Turns per loader.
    """
    import loaders

    tars = [Path(shard.url) for shard in shards.shards]
    sides: list[tuple[str, float, Callable[[], Spent]]] = [
        ("ours", 0.0, loaders.ours(shards, work)),
        ("ImageFolder + Pillow", 2.0, loaders.image_folder(folder, work)),
        ("stock webdataset", 2.0, loaders.stock_webdataset(tars, work)),
        ("simplejpeg decoding alone", 0.75, loaders.decoding_alone(shards, work)),
    ]
    for _, _, turn in sides:
        turn()
    mine, *others = take_turns([turn for _, _, turn in sides], rounds)
    rate = work.num_images / statistics.median(spent.wall for spent in mine)
    print(f"  {work.task.name}: ours {rate:,.0f} images/s", flush=True)
    for (name, target, _), theirs in zip(sides[1:], others, strict=True):
        ratios = [b.wall / a.wall for a, b in zip(mine, theirs, strict=True)]
        rate = work.num_images / statistics.median(spent.wall for spent in theirs)
        print(
            f"    {name:26} {rate:7,.0f} images/s   ours is {statistics.median(ratios):.2f}× "
            f"({min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)} turns)"
            f"   (target ≥ {target:.2f}×)",
            flush=True,
        )


def _pack(images: Path, shards: Path) -> "ShardSet":
    from ssl_vit.data.sources import open_shards
    from ssl_vit_data_prep.pack import pack_images
    from ssl_vit_data_prep.shard_writer import PackOptions

    pack_images(images, shards, PackOptions(shard_bytes=8 * 2**20))
    return open_shards(shards)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--part", choices=_PARTS, help="only this part")
    parser.add_argument("--count", type=positive, help="number of images of 500 × 375 pixels")
    parser.add_argument("--large-count", type=positive, help="number of images of 12 megapixels")
    parser.add_argument("--rounds", type=positive, help="turns per loader")
    parser.add_argument("--batches", type=positive, help="batches of 64 per turn")
    parser.add_argument("--large-batches", type=positive, help="batches of 8 per turn")
    parser.add_argument("--samples", type=positive, help="samples to load, to measure memory")
    parser.add_argument("--index-samples", type=positive, help="samples in the synthetic index")
    parser.add_argument("--pack-count", type=positive, help="number of images to pack")
    full = {
        **{"count": 600, "large_count": 24, "rounds": 7, "batches": 20, "large_batches": 8},
        **{"samples": 100_000, "index_samples": 100_000_000, "pack_count": 40_000},
    }
    quick = {
        **{"count": 128, "large_count": 8, "rounds": 3, "batches": 4, "large_batches": 2},
        **{"samples": 10_000, "index_samples": 1_000_000, "pack_count": 2_000},
    }
    arguments = parser.parse_args()
    return with_defaults(arguments, quick if arguments.quick else full)


if __name__ == "__main__":
    main()
