"""Exports: round trip, timm, and refusals."""

import json
from pathlib import Path

import pytest
import torch

import ssl_vit
from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ExportInfo, find_export, write_export
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.start import load_exported

SMALL = VitConfig(width=32, depth=2, heads=2, patch_size=8, image_size=32, position="sincos")


def export(folder: Path, config: VitConfig, step: int = 7) -> VisionTransformer:
    model = VisionTransformer(config).eval()
    info = ExportInfo(
        backbone=config,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        recipe="test",
        step=step,
        data_fingerprint="0" * 16,
        ssl_vit_version=ssl_vit.__version__,
    )
    write_export(folder, {"backbone": model.state_dict()}, info)
    return model


def test_a_backbone_comes_back_in_one_line_with_the_same_features(tmp_path: Path):
    model = export(tmp_path / "exports" / "step_00000007", SMALL)
    images = torch.rand(2, 3, 32, 32)
    for path in ("", "exports/step_00000007", "exports/step_00000007/backbone.safetensors"):
        loaded = ssl_vit.load_backbone(tmp_path / path)
        assert not loaded.training
        torch.testing.assert_close(loaded(images).cls, model(images).cls, rtol=0, atol=0)


def test_the_newest_export_of_a_run_counts(tmp_path: Path):
    for step in (90, 100, 1000):
        export(tmp_path / "exports" / f"step_{step:08d}", SMALL, step)
    assert find_export(tmp_path).name == "step_00001000"


def test_whoever_may_read_the_folder_may_read_the_export(tmp_path: Path):
    folder = tmp_path / "exports" / "step_00000007"
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    export(folder, SMALL)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes["backbone.safetensors"] == 0o640


def test_timm_loads_an_export_strictly_and_sees_the_same(tmp_path: Path):
    define_missing_ops()
    import timm

    config = VitConfig(**VIT_SIZES["tiny"], position="sincos")
    model = export(tmp_path, config)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        checkpoint_path=str(tmp_path / "backbone.safetensors"),
        num_classes=0,
    ).eval()
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), model(images).cls)


def test_a_run_may_start_from_an_export_of_another_resolution(tmp_path: Path):
    model = export(tmp_path, SMALL)
    larger = VisionTransformer(SMALL.model_copy(update={"image_size": 48}))
    load_exported(larger, str(tmp_path))
    torch.testing.assert_close(larger.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert larger.pos_embed.shape == (1, 1 + 36, 32)


def test_an_export_of_another_architecture_is_refused(tmp_path: Path):
    export(tmp_path, SMALL)
    deeper = VisionTransformer(SMALL.model_copy(update={"depth": 3}))
    with pytest.raises(UserError, match="do not fit the model"):
        load_exported(deeper, str(tmp_path))


def test_a_folder_without_an_export_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no export") as caught:
        find_export(tmp_path)
    assert "give a run folder" in caught.value.remedy


def test_a_run_that_has_written_none_yet_is_told_how_to(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="no export") as caught:
        find_export(tmp_path)
    assert "export.every_steps=100" in caught.value.remedy


def test_a_cut_off_file_is_refused(tmp_path: Path):
    export(tmp_path, SMALL)
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load"):
        ssl_vit.load_backbone(tmp_path)


def test_a_description_of_a_network_that_the_file_cannot_be_of_allocates_nothing(tmp_path: Path):
    export(tmp_path, SMALL)
    info = json.loads((tmp_path / "backbone.json").read_text())
    info["backbone"] |= {"width": 49152, "depth": 1000, "heads": 768}
    (tmp_path / "backbone.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"values, but backbone\.json describes .* parameters"):
        ssl_vit.load_backbone(tmp_path)


def test_weights_that_are_whole_numbers_are_refused(tmp_path: Path):
    export(tmp_path, SMALL)
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(UserError, match="has type int32"):
        ssl_vit.load_backbone(tmp_path)
