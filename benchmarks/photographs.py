"""Makes a folder of JPEGs that cost a decoder what photographs cost, without downloading any.

Noise whose strength falls with its frequency, as in natural images, plus sharp edges; at quality 90
a picture of 500 × 375 pixels, ImageNet's usual size, comes to about 45 KB.
"""

from pathlib import Path

import numpy as np
from PIL import Image

_WIDTH, _HEIGHT = 500, 375
_QUALITY = 90
_CLASSES = 4
_OCTAVES = ((4, 60.0), (8, 40.0), (16, 28.0), (32, 20.0), (64, 14.0), (128, 9.0), (256, 5.0))
"""(cells across, standard deviation in grey levels) of each layer of noise."""


def write_photographs(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` JPEGs, in sub-folders as torchvision's ImageFolder wants them."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        target = folder / f"class{number % _CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(draw_photograph(rng))
        picture.save(target / f"{number:05d}.jpg", quality=_QUALITY)


def draw_photograph(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8."""
    grey = sum(_noise(cells, spread, rng) for cells, spread in _OCTAVES)
    # Objects have outlines: where a smooth field changes sign, brightness jumps.
    grey = grey + np.where(_noise(6, 1.0, rng) > 0, 25.0, -25.0)
    colours = [_noise(8, 18.0, rng) for _ in range(3)]
    pixels = np.stack([128.0 + grey + colour for colour in colours], axis=-1)
    return pixels.clip(0, 255).astype(np.uint8)


def _noise(cells: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32: random values on a coarse grid, interpolated."""
    rows = max(2, cells * _HEIGHT // _WIDTH)
    grid = rng.normal(0.0, spread, (rows, cells)).astype(np.float32)
    layer = Image.fromarray(grid).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(layer)
