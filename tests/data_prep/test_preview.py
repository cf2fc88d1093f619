"""The preview shows the very crops and masks of a run's first samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.mixture import build_order
from ssl_vit.data.sources import open_shards
from ssl_vit.objectives.build import build_views
from ssl_vit.recipes import read_config
from ssl_vit.run.data import sizes_of
from tests.command_line import ssl_vit
from tests.synthetic import write_shards

HEIGHT, GAP = 160, 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def test_a_preview_is_what_training_sees_first(shards: Path, tmp_path: Path):
    words = ["data.lanes=8", "backbone.image_size=160", "backbone.patch_size=16"]
    done = ssl_vit(
        "shards",
        "preview",
        shards,
        "mae_vits16",
        *words,
        "--out",
        tmp_path / "p.png",
        "--images",
        "3",
    )
    assert done.returncode == 0, done.stderr
    assert f"wrote    {tmp_path / 'p.png'}: the first 3 samples of mae_vits16" in done.stdout

    config = read_config("mae_vits16", [*words, f"data.shards={shards}"], is_smoke=False)
    opened = open_shards(shards)
    refs = build_order(sizes_of(opened), config.data, config.seed).update(0, range(8))[:3]
    assert [line.strip() for line in done.stdout.splitlines()[1:]] == [
        opened.key(ref.number) for ref in refs
    ]
    maker = TrainingBatches(opened, build_views(config.objective, config.backbone), config.seed)
    batch = maker.make(refs, torch.empty(maker.num_bytes(3), dtype=torch.uint8)).batch

    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    assert sheet.shape[0] == 3 * (HEIGHT + GAP) + GAP
    for row in range(3):
        top = GAP + row * (HEIGHT + GAP)
        seen = sheet[top : top + HEIGHT, -GAP - HEIGHT : -GAP]
        crop = sheet[top : top + HEIGHT, -2 * (GAP + HEIGHT) : -2 * GAP - HEIGHT]
        pixels = batch.images[row].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(crop, pixels)
        hidden = batch.hidden[row].numpy().reshape(10, 10).repeat(16, 0).repeat(16, 1)
        np.testing.assert_array_equal(seen, np.where(hidden[..., None], 0, pixels))
        # The crop's box, in red, is drawn over the image at the left.
        image = sheet[top : top + HEIGHT, GAP : -2 * (GAP + HEIGHT) - GAP].astype(int)
        assert ((image == (255, 45, 45)).all(axis=-1)).sum() > 50


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere", "mae_vits16"], "no shard folder"),
        (["SHARDS", "mae_vitx"], "no recipe named"),
        (["SHARDS", "mae_vits16", "data.lanes=60"], "data.lanes=60"),
        (
            ["SHARDS", "mae_vits16", "data.lanes=16", "--out", "/nowhere/p.png"],
            "folder /nowhere does not exist",
        ),
    ],
)
def test_a_preview_that_cannot_be_made_says_why(words: list[str], problem: str, shards: Path):
    done = ssl_vit("shards", "preview", *[str(shards) if w == "SHARDS" else w for w in words])
    assert done.returncode == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 2
