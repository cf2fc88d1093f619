"""Tiny labeled shard sets and a fresh export, made without the data-preparation package."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.data.index_file import SAMPLE_RECORD, Index, describe_shard, write_index
from ssl_vit.models.config import VitConfig

CLASSES = ("blue", "green", "red")
CONFIG = VitConfig(width=32, depth=2, heads=2, patch_size=8, image_size=32)

MakeShards = Callable[..., Path]


def colored_image(label: int, rng: np.random.Generator) -> np.ndarray:
    """(40, 52, 3) uint8 noise whose channel ``2 - label``, counted around, is bright."""
    pixels = rng.integers(0, 120, (40, 52, 3), dtype=np.uint8)
    if label >= 0:
        pixels[..., (2 - label) % 3] += 120
    return pixels


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(
    folder: Path, images: Sequence[bytes], labels: Sequence[int], classes: Sequence[str]
) -> None:
    """One tar in WebDataset's layout with the library's own index beside it."""
    folder.mkdir(parents=True)
    path = folder / "shard-000000.tar"
    records = []
    with tarfile.open(path, "w") as tar:
        for number, (data, label) in enumerate(zip(images, labels, strict=True)):
            member = tarfile.TarInfo(f"image{number:04d}.png")
            member.size = len(data)
            records.append((tar.offset + 512, len(data), 512, label))
            tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = np.array(records, dtype=SAMPLE_RECORD)
    shard = describe_shard(path.name, path.stat().st_size, digest, rows)
    write_index(folder, Index((shard,), tuple(classes), None), [rows])


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Makes a folder of colored images, one a label; files numbered in ``broken`` are cut off."""

    def make(
        name: str,
        labels: Sequence[int],
        seed: int,
        classes: Sequence[str] = CLASSES,
        broken: Sequence[int] = (),
    ) -> Path:
        rng = np.random.default_rng(seed)
        images = [png(colored_image(label, rng)) for label in labels]
        for number in broken:
            images[number] = images[number][:60]
        write_shards(tmp_path / name, images, labels, classes)
        return tmp_path / name

    return make


@pytest.fixture
def config() -> VitConfig:
    """The backbone of ``run_folder``."""
    return CONFIG


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder whose only content is the export of an untrained backbone at step 7."""
    import torch

    from ssl_vit.exports.folder import ExportInfo, write_export
    from ssl_vit.models.vit import VisionTransformer

    torch.manual_seed(3)
    info = ExportInfo(
        backbone=CONFIG,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        recipe="none",
        step=7,
        data_fingerprint="0" * 16,
        ssl_vit_version="0",
    )
    folder = tmp_path / "run" / "exports" / "step_00000007"
    write_export(folder, {"backbone": VisionTransformer(CONFIG).state_dict()}, info)
    return tmp_path / "run"
