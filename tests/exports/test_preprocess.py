"""`load_backbone(…).preprocess` makes the tensors that `ssl-vit eval` feeds, to the last bit."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_vit
from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ExportInfo, write_export
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_eval.features import BackboneEncoder, extract

SMALL = VitConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32, position="sincos")


def load(folder: Path, value_range: tuple[float, float] | None = None) -> Any:
    info = ExportInfo(
        backbone=SMALL,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        value_range=value_range,
        recipe="test",
        step=7,
        data_fingerprint="0" * 16,
        ssl_vit_version=ssl_vit.__version__,
    )
    write_export(folder, {"backbone": VisionTransformer(SMALL).state_dict()}, info)
    return ssl_vit.load_backbone(folder)


def fed_by_evaluation(model: Any, shards: Path, value_range: Any = None) -> torch.Tensor:
    """What the network sees of each image of the shards, in the order of their names."""
    seen: list[torch.Tensor] = []
    encoder = BackboneEncoder(model, IMAGENET_MEAN, IMAGENET_STD)
    encoder.backbone.register_forward_pre_hook(lambda _, images: seen.append(images[0].clone()))
    crop = CenterCrop(SMALL.height_width)
    opened = open_shards(shards)
    extract({"it": encoder}, opened, crop, 2, 0, torch.device("cpu"), value_range=value_range)
    order = sorted(range(sum(map(len, seen))), key=opened.key)  # packing shuffles
    return torch.cat(seen)[order]


def write_photographs(folder: Path) -> list[Path]:
    """A wide JPEG that is shrunk while it is decoded, one on its side, a gray and a see-through
    PNG.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    (folder / "a").mkdir(parents=True)
    files = [folder / "a" / name for name in ("1.jpg", "2.jpg", "3.png", "4.png")]
    Image.fromarray(pixels).save(files[0], quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[:100, :120]).save(files[1], quality=90, exif=turned)
    Image.fromarray(pixels[:64, :48, 0]).save(files[2])
    opacity = np.linspace(0, 255, 64 * 48).astype(np.uint8).reshape(64, 48, 1)
    Image.fromarray(np.concatenate([pixels[:64, :48], opacity], axis=2)).save(files[3])
    return files


def test_paths_become_what_an_evaluation_feeds(tmp_path: Path):
    files = write_photographs(tmp_path / "images")
    pack_images(tmp_path / "images", tmp_path / "shards", PackOptions(10**6))
    model = load(tmp_path / "export")
    images = model.preprocess(files)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    torch.testing.assert_close(
        images, fed_by_evaluation(model, tmp_path / "shards"), rtol=0, atol=0
    )
    assert model(images).cls.shape == (4, 32)


def test_values_of_more_than_8_bits_are_shown_by_the_exports_range(tmp_path: Path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    values = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40) * 2
    file = tmp_path / "images" / "a" / "1.png"
    Image.fromarray(values).save(file)
    pack_images(tmp_path / "images", tmp_path / "shards", PackOptions(10**6))
    model = load(tmp_path / "export", (1000.0, 4000.0))
    fed = fed_by_evaluation(model, tmp_path / "shards", model.preprocess.values)
    torch.testing.assert_close(model.preprocess(file), fed, rtol=0, atol=0)
    with Image.open(file) as opened:
        torch.testing.assert_close(model.preprocess(opened), fed, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"1\.png: .*value range"):
        load(tmp_path / "other").preprocess(file)


def test_an_opened_image_is_as_good_as_its_path(tmp_path: Path):
    files = write_photographs(tmp_path / "images")[1:]  # decoded at full size either way
    model = load(tmp_path / "export")
    opened = [Image.open(file) for file in files]
    difference = (model.preprocess(opened) - model.preprocess(files)).abs().amax(dim=(1, 2, 3))
    # Pillow's libjpeg may round a JPEG's pixel otherwise than ours; PNGs are exact.
    assert difference[0] < 3 / 255 / min(IMAGENET_STD)
    assert difference[1:].max() == 0


def test_one_image_and_another_size(tmp_path: Path):
    file = write_photographs(tmp_path / "images")[0]
    model = load(tmp_path / "export")
    larger = model.preprocess(str(file), size=48)
    assert larger.shape == (1, 3, 48, 48)
    assert model(larger).patches.shape == (1, 36, 32)


def test_what_is_no_image_is_named(tmp_path: Path):
    model = load(tmp_path / "export")
    (tmp_path / "notes.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"cannot read .*notes\.jpg"):
        model.preprocess(tmp_path / "notes.jpg")
    with pytest.raises(UserError, match=r"cannot read .*missing\.jpg"):
        model.preprocess([tmp_path / "missing.jpg"])


def test_the_quick_start_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    write_photographs(tmp_path)[0].rename(tmp_path / "a.jpg")
    Image.new("RGB", (40, 50)).save(tmp_path / "b.tif")
    load(tmp_path / "RUN" / "exports" / "step_00000007")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([2, 32]) torch.Size([2, 16, 32])\n"
