"""Crops that are not square, from the command line to an evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssl_vit
from ssl_vit.data.crops import Box, CenterCrop, crop_aspect, random_resized_crop_box
from tests.command_line import ssl_vit as command
from tests.synthetic import write_shards


@pytest.mark.parametrize("recipe", ["mae_vits16", "dinov2_vitl16"])
def test_a_run_on_rectangles_trains_and_is_evaluated(recipe: str, tmp_path: Path) -> None:
    shards, run = write_shards(tmp_path), tmp_path / "run"
    test = write_shards(tmp_path / "test", per_class=6)
    words = (f"data.shards={shards}", f"monitor.labeled={shards}", "backbone.image_size=[32,64]")
    done = command("pretrain", recipe, "--smoke", "--run", run, *words)
    assert done.returncode == 0, done.stderr
    backbone = ssl_vit.load_backbone(run)
    assert backbone.config.height_width == (32, 64)
    assert backbone.config.grid == (2, 4)
    picture = Image.open(sorted((run / "panels").glob("patch_features_*.png"))[-1])
    assert picture.width == 2 * (64 + 4)  # two tiles in frames of two pixels
    assert picture.height % (32 + 4) == 0
    done = command("eval", "knn", run, "--train", shards, "--test", test, "--k", "3")
    assert done.returncode == 0, done.stderr
    (file,) = (run / "evals").glob("knn_*.json")
    assert json.loads(file.read_text())["rows"]


def test_random_crops_of_a_rectangle_keep_its_shape_within_a_third() -> None:
    rng = np.random.default_rng(0)
    aspect = crop_aspect((32, 64))
    assert aspect == (1.5, 8 / 3)
    for _ in range(200):
        box = random_resized_crop_box(400, 900, (0.1, 0.5), aspect, rng)
        assert 1.45 < box.width / box.height < 2.75
    assert crop_aspect((96, 96)) == (3 / 4, 4 / 3)


@pytest.mark.parametrize(
    ("image", "box"),
    [
        ((100, 300), Box(7, 63, 86, 173)),  # its height decides
        ((300, 200), Box(106, 12, 88, 175)),  # and here its width
    ],
)
def test_the_center_of_a_rectangle_is_as_large_as_it_can_be(
    image: tuple[int, int], box: Box
) -> None:
    crop = CenterCrop((32, 64), ratio=0.875)(*image)
    assert crop.box == box
    assert crop.size == (32, 64)
