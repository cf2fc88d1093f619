"""`ssl-vit shards pack` compared with `tar cf` of the same folder, which only copies."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from timing import Spent, Turn, interleave, processor_seconds

_ROUNDS = 5


def compare_pack_with_tar(images: Path, scratch: Path, count: int) -> None:
    """Print both rates and their ratio.

    Args:
        images: JPEGs to copy repeatedly into a folder of ``count`` files.
        scratch: Folder for all files.
        count: Number of images.
    """
    folder = scratch / "many"
    files = sorted(images.rglob("*.jpg"))
    for number in range(count):
        target = folder / f"class{number % 10}" / f"{number:07d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[number % len(files)], target)
    num_bytes = sum(file.stat().st_size for file in files) / len(files) * count
    shards, tar = scratch / "packed", scratch / "plain.tar"
    pack = [sys.executable, "-m", "ssl_vit", "shards", "pack", folder, shards, "--workers", "2"]
    sides = (_command(pack, shards), _command(["tar", "cf", tar, folder], tar))
    for side in sides:
        side()  # afterwards the files are in the page cache
    measured = interleave(*sides, _ROUNDS)
    rates = [count / wall for wall in measured.walls]
    print(
        f"packing   {count:,} images, {num_bytes / 1e9:.2f} GB: pack with 2 workers "
        f"{rates[0]:,.0f} images/s, tar cf {rates[1]:,.0f} images/s: pack is "
        f"{measured.describe()} as fast   (target ≥ 0.50×)",
        flush=True,
    )
    for path in (folder, shards):
        shutil.rmtree(path, ignore_errors=True)
    tar.unlink(missing_ok=True)


def _command(command: list[object], made: Path) -> Turn:
    def turn() -> Spent:
        if made.is_dir():
            shutil.rmtree(made)
        made.unlink(missing_ok=True)
        wall, processor = time.perf_counter(), processor_seconds()
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        return Spent(time.perf_counter() - wall, processor_seconds() - processor)

    return turn
