"""`ssl-vit finetune`: the recipe and settings it chooses, and a whole run with its test."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ssl_vit as package
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ExportInfo, find_export, read_export_info, write_export
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import ClassificationConfig
from ssl_vit.recipes import find_recipe, read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_eval.finetune import (
    _batch_words,
    check_test_set,
    choose_recipe,
    plan_finetuning,
)
from tests.command_line import ssl_vit
from tests.synthetic import write_images, write_shards

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 32}


def export(folder: Path, recipe: str = "test", **settings: Any) -> Path:
    config = VitConfig(**{**SIZES, **settings})
    info = ExportInfo(
        backbone=config,
        pixel_mean=(0.1, 0.2, 0.3),
        pixel_std=(0.4, 0.5, 0.6),
        value_range=(0.0, 4095.0),
        recipe=recipe,
        step=7,
        data_fingerprint="0" * 16,
        ssl_vit_version=package.__version__,
    )
    write_export(folder, {"backbone": VisionTransformer(config).state_dict()}, info)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("train"))


THAWED = "optimizer.freeze_units=0"


def planned(
    train: Path, source: Path, *overrides: str, size: tuple[int, ...] = (), **more: Any
) -> RunConfig:
    plan = plan_finetuning(source, source / "none", str(train), size, overrides=overrides, **more)
    return read_config(plan.recipe, plan.words, is_smoke=False)


@pytest.mark.parametrize(
    ("recipe", "width", "expected"),
    [
        ("mae_vitb16", 768, "finetune_mae_vitb16"),
        ("beit2_vitb16", 768, "finetune_beit2_vitb16"),
        ("finetune_mae_vitl16", 1024, "finetune_mae_vitl16"),
        ("dinov2_vitl14_in22k", 1024, "finetune_dinov2_vitl14"),
        ("dinov2_vitg14", 1536, "finetune_dinov2_vitl14"),
        ("ibot_vitl16", 1024, "finetune_mae_vitl16"),
        ("mae_vits16", 384, "finetune_mae_vitb16"),
        ("dinov2_small_data", 192, "finetune_small_data"),
        ("somebody's", 192, "finetune_small_data"),
    ],
)
def test_every_export_has_a_recipe(recipe: str, width: int, expected: str, tmp_path: Path) -> None:
    info = read_export_info(export(tmp_path, recipe))
    network = info.backbone.model_copy(update={"width": width})
    assert choose_recipe(info.model_copy(update={"backbone": network})) == expected


@pytest.mark.parametrize(
    ("recipe", "images", "batch", "rate"),
    [
        ("finetune_mae_vitb16", 1_281_167, 1024, 5e-4),  # the rate is per 256 images
        ("finetune_mae_vitb16", 2_000, 64, 5e-4),
        ("finetune_beit_vitb16", 2_000, 64, 4e-3 / 16),
        ("finetune_small_data", 100, 16, 5e-4 / 2),
    ],
)
def test_small_data_gets_small_batches(recipe: str, images: int, batch: int, rate: float) -> None:
    config = find_recipe(recipe)
    found = read_config(recipe, _batch_words(config, images), is_smoke=False)
    assert found.data.global_batch_size == batch
    assert found.data.global_batch_size % found.data.lanes == 0
    assert found.optimizer.base_learning_rate == pytest.approx(rate)
    factor = batch / config.data.global_batch_size
    assert found.optimizer.final_learning_rate == pytest.approx(
        config.optimizer.final_learning_rate * factor
    )


def test_printed_words_survive_a_shell(train: Path, tmp_path: Path) -> None:
    """As in  ssl-vit launch submit $(ssl-vit finetune … --print)."""
    source = export(tmp_path / "export", position="sincos")
    own = ("objective.loss=binary", "objective.label_separator=;", "--image-size", "64")
    command = ("finetune", source, "--run", tmp_path / "run", "--train", train, *own, "--print")
    printed = ssl_vit(*command)
    assert printed.returncode == 0, printed.stderr
    words = subprocess.run(
        ["bash", "-c", "printf '%s\\n' $(cat)"],
        input=printed.stdout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    config = read_config(words[0], words[1:], is_smoke=False)
    assert isinstance(config.objective, ClassificationConfig)
    assert config.objective.label_separator == ";"
    assert config.data.shards == str(train)
    assert config.resume_from == str(source.resolve())
    assert config.backbone.image_size == 64
    blank = ssl_vit(*command, f"data.shards={train} x")
    assert "these words need quotes" in blank.stderr


def test_network_and_pixels_are_the_exports_and_the_rest_is_the_recipes(
    train: Path, tmp_path: Path
) -> None:
    source = export(tmp_path, "mae_vitb16", position="sincos", drop_path=0.5)
    config = planned(train, source, size=(64, 48))
    recipe = find_recipe("finetune_mae_vitb16")
    kept = {name: getattr(recipe.backbone, name) for name in ("drop_path", "drop_path_rule")}
    expected = VitConfig(**{**SIZES, **kept, "position": "sincos", "image_size": (64, 48)})
    assert config.backbone == expected
    assert config.resume_from == str(tmp_path.resolve())
    assert config.data.pixel_mean == (0.1, 0.2, 0.3)
    assert config.data.pixel_std == (0.4, 0.5, 0.6)
    assert config.data.value_range == (0.0, 4095.0)
    assert config.data.shards == str(train)
    assert config.data.global_batch_size == 16  # of 48 images
    for section in ("objective", "schedule"):
        assert getattr(config, section) == getattr(recipe, section)
    final = recipe.optimizer.final_learning_rate * 16 / 1024  # in proportion to the batch
    assert config.optimizer == recipe.optimizer.model_copy(update={"final_learning_rate": final})


def test_with_few_images_the_backbone_of_small_data_stays_frozen(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export(tmp_path)
    config = planned(train, source)
    assert isinstance(config.objective, ClassificationConfig)
    assert (config.optimizer.freeze_units, config.objective.head) == (2, "probe")
    assert (config.backbone.drop_path, config.objective.patch_dropout) == (0, 0)
    (note,) = plan_finetuning(source, tmp_path / "run", str(train), ()).notes
    assert note.startswith("48 training images are few: the backbone's blocks stay frozen")
    thawed = plan_finetuning(source, tmp_path / "run", str(train), (), overrides=[THAWED])
    assert thawed.notes == ()
    assert planned(train, source, THAWED).optimizer.freeze_units == 0
    pooled = planned(train, source, "objective.pooling=map").objective
    assert isinstance(pooled, ClassificationConfig)
    assert pooled.head == "small"
    monkeypatch.setattr("ssl_vit_eval.finetune._FEW_IMAGES", 48)
    assert planned(train, source).optimizer.freeze_units == 0


def test_a_table_of_positions_is_copied_into_every_block(train: Path, tmp_path: Path) -> None:
    config = planned(train, export(tmp_path, "beit_small_data", position="relative"), THAWED)
    assert isinstance(config.objective, ClassificationConfig)
    assert config.objective.patch_dropout == 0  # which relative positions cannot do
    frozen = planned(train, export(tmp_path / "again", "beit_small_data", position="relative"))
    assert (frozen.objective, frozen.optimizer.freeze_units) == (
        config.objective.model_copy(update={"head": "probe"}),
        2,
    )
    assert config.backbone.relative_tables == "per_block"
    assert config.backbone.image_size == 32


def test_the_users_words_come_last(train: Path, tmp_path: Path) -> None:
    words = ("backbone.drop_path=0.3", "data.shards=OTHER")
    config = planned(train, export(tmp_path), *words, is_smoke=True, validation="V")
    assert config.backbone.drop_path == 0.3
    assert config.data.shards == "OTHER"
    assert config.objective.validating is not None
    assert config.objective.validating.shards == "V"
    assert (config.schedule.unit, config.schedule.length) == ("steps", 20)
    assert config.backbone.width == 32  # a trial has the whole network


def test_a_recipe_without_labels_is_refused(train: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mae_vitb16 does not learn from labels"):
        planned(train, export(tmp_path), recipe="mae_vitb16")
    with pytest.raises(UserError, match="no export at"):
        planned(train, tmp_path / "nothing")


def test_from_an_export_to_the_numbers_of_the_test_set(tmp_path: Path) -> None:
    train, pretrained, run = write_shards(tmp_path), tmp_path / "mae", tmp_path / "run"
    write_images(tmp_path / "other", 7)
    pack_images(tmp_path / "other", tmp_path / "test", PackOptions(40_000))
    words = ("--smoke", f"data.shards={train}", "export.every_steps=10")
    done = ssl_vit("pretrain", "mae_vitb16", "--run", pretrained, *words)
    assert done.returncode == 0, done.stderr
    command = ("finetune", pretrained / "exports/step_00000010", "--run", run, "--train", train)
    command = (*command, "--test", tmp_path / "test", "--image-size", "64", "--smoke")
    done = ssl_vit(*command, "schedule.length=4", "schedule.warmup=1")
    assert done.returncode == 0, done.stderr
    assert "14 test images" in done.stdout
    (result,) = (run / "evals").glob("classifier_step_*.json")
    found = json.loads(result.read_text())
    assert found["info"]["backbone"]["image_size"] == 64
    assert list(found["beside"]) == ["frozen, linear probe", "frozen, k-NN"]
    assert "frozen, k-NN" in done.stdout
    # Started from the run, whose newest export is another: it continues from the one it had.
    again = ssl_vit("finetune", pretrained, *command[2:], "schedule.length=4", "schedule.warmup=1")
    assert again.returncode == 0, again.stderr
    assert find_export(run).name == "step_00000004"


def test_a_test_set_without_labels_is_refused_before_training(tmp_path: Path) -> None:
    train = write_shards(tmp_path)
    write_images(tmp_path / "flat", 3, (".",))
    pack_images(tmp_path / "flat", tmp_path / "test", PackOptions(40_000))
    source = export(tmp_path / "export", position="sincos")
    command = ("finetune", source, "--run", tmp_path / "run", "--train", train)
    done = ssl_vit(*command, "--test", tmp_path / "test")
    assert done.returncode == 2
    assert "has a label" in done.stderr
    assert not (tmp_path / "run").exists()


def test_places_that_yaml_would_read_otherwise_are_quoted(train: Path, tmp_path: Path) -> None:
    config = planned(train, export(tmp_path / "mae [1] #: x"), validation="2024")
    assert config.resume_from.endswith("mae [1] #: x")
    assert config.objective.validating is not None
    assert config.objective.validating.shards == "2024"


def test_three_sizes_are_refused(train: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image-size is given 3 times"):
        planned(train, export(tmp_path), size=(48, 48, 48))


def test_another_export_than_the_run_was_started_from_is_refused(
    train: Path, tmp_path: Path
) -> None:
    first, other, run = export(tmp_path / "a/exports/x"), export(tmp_path / "b"), tmp_path / "run"
    plan = plan_finetuning(first, run, str(train), ())
    RunFolder(run).write_config(read_config(plan.recipe, plan.words, is_smoke=False))
    with pytest.raises(UserError, match=r"was started from .*, not from"):
        plan_finetuning(other, run, str(train), ())
    newer = export(tmp_path / "a/exports/y")
    assert plan_finetuning(newer, run, str(train), ()).export == first.resolve()
    shutil.rmtree(tmp_path / "a")
    again = plan_finetuning(first, run, str(train), ())
    found = read_config(again.recipe, again.words, is_smoke=False)
    assert found == RunFolder(run).read_config()


def test_test_images_of_other_classes_are_refused_before_training(
    train: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", 3, ("b", "c"))
    pack_images(tmp_path / "images", tmp_path / "test", PackOptions(40_000))
    with pytest.raises(UserError, match="3 of 6 test images are of classes that --train lacks: c"):
        check_test_set(str(tmp_path / "test"), str(train))
    with pytest.raises(UserError, match="are the same images"):
        check_test_set(str(train), str(train))
