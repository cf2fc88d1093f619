"""JPEGs for measuring decoding: real photographs if available, otherwise synthetic ones.

Debian's wallpapers (packages `mate-backgrounds` and `lomiri-wallpapers-16.04`, GPL-2+ and
CC-BY-SA) are downloaded with apt into a scratch folder and deleted afterwards. Cropped to 500 × 375
pixels at quality 90 they resemble ImageNet's; scaled to 4000 × 3000, those of a phone. Synthetic
ones are noise whose amplitude decreases with frequency, as in natural images, plus edges.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

USUAL = (500, 375)
LARGE = (4000, 3000)
_QUALITY = 90
_CLASSES = 4
_PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04")
_SHORTEST = 900  # pixels of the shorter side of a wallpaper to crop from
_OCTAVES = ((4, 60.0), (8, 40.0), (16, 28.0), (32, 20.0), (64, 14.0), (128, 9.0), (256, 5.0))
"""(cells across, standard deviation in gray levels) of each layer of noise."""


def find_photographs(scratch: Path) -> list[Image.Image]:
    """Real photographs; an empty list if apt cannot download them."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return []
    scratch.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        quiet = {"cwd": scratch, "capture_output": True, "check": False}
        subprocess.run(["apt-get", "download", package], **quiet)
        for archive in scratch.glob(f"{package}*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], **quiet)
    found = []
    for path in sorted(scratch.rglob("*.jp*g")):
        image = Image.open(path)
        if min(image.size) >= _SHORTEST:
            found.append(image.convert("RGB"))
    return found


def write_photographs(
    folder: Path, count: int, size: tuple[int, int], originals: list[Image.Image], seed: int
) -> None:
    """Write ``count`` JPEGs in class folders, as torchvision's ImageFolder expects.

    Args:
        folder: Where the class folders are created.
        count: Number of images.
        size: (width, height).
        originals: Photographs to crop at random; empty: synthetic images.
        seed: Seed of the random crops or images.
    """
    rng = np.random.default_rng(seed)
    draw: Callable[[], Image.Image] = lambda: draw_photograph(size, rng)  # noqa: E731
    if originals:
        cuts = cut_photographs(size, originals, rng)
        draw = lambda: next(cuts)  # noqa: E731
    for number in range(count):
        target = folder / f"class{number % _CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        draw().save(target / f"{number:05d}.jpg", quality=_QUALITY)


def cut_photographs(
    size: tuple[int, int], originals: list[Image.Image], rng: np.random.Generator
) -> Iterator[Image.Image]:
    """Random crops of the originals, scaled to (width, height) ``size``."""
    ratio = size[1] / size[0]
    while True:
        for image in originals:
            widest = min(image.width, int(image.height / ratio))
            width = int(rng.integers(widest // 2, widest + 1))
            height = int(width * ratio)
            left = int(rng.integers(0, image.width - width + 1))
            top = int(rng.integers(0, image.height - height + 1))
            box = (left, top, left + width, top + height)
            yield image.resize(size, Image.Resampling.BICUBIC, box)


def draw_photograph(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A synthetic image of (width, height) ``size``."""
    gray = sum(_noise(size, cells, spread, rng) for cells, spread in _OCTAVES)
    # Objects have outlines: where a smooth field changes sign, brightness jumps.
    gray = gray + np.where(_noise(size, 6, 1.0, rng) > 0, 25.0, -25.0)
    colors = [_noise(size, 8, 18.0, rng) for _ in range(3)]
    pixels = np.stack([128.0 + gray + color for color in colors], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _noise(
    size: tuple[int, int], cells: int, spread: float, rng: np.random.Generator
) -> np.ndarray:
    """(height, width) float32: random values on a coarse grid, interpolated."""
    rows = max(2, cells * size[1] // size[0])
    grid = rng.normal(0.0, spread, (rows, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
