"""Images and shards for tests: smooth colored noise, the same on every machine."""

from pathlib import Path

import numpy as np
from PIL import Image

from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions


def write_images(folder: Path, per_class: int = 24, classes: tuple[str, ...] = ("a", "b")) -> None:
    """PNG files in `folder/CLASS/`: lossless, so no JPEG library's version enters the pixels."""
    rng = np.random.Generator(np.random.Philox(key=np.array([1, 2], dtype=np.uint64)))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            coarse = (rng.random((6, 8, 3)) * 255).astype(np.uint8)
            pixels = coarse.repeat(12, axis=0).repeat(12, axis=1)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


def write_shards(folder: Path, per_class: int = 24, shard_bytes: int = 40_000) -> Path:
    """Several shards of :func:`write_images` in `folder/shards`; returns that path."""
    write_images(folder / "images", per_class)
    pack_images(folder / "images", folder / "shards", PackOptions(shard_bytes))
    return folder / "shards"
