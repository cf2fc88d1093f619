"""Recipes against the published tables, and their smoke twins against the rules for configs."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.config import differences, leaves, read_yaml, to_plain, to_yaml, validate
from ssl_vit.errors import UserError
from ssl_vit.objectives.config import MaskFeatConfig
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import RECIPES, find_recipe, read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.smoke import smoke
from ssl_vit.settings import commented_yaml
from ssl_vit.training.plan import DataFacts, Machine, make_plan

# He et al. 2021, table 8 and appendix A.1, and PRETRAIN.md of the authors' code.
MAE = {
    "data.global_batch_size": 4096,
    "optimizer.betas": (0.9, 0.95),
    "optimizer.weight_decay": 0.05,
    "optimizer.final_weight_decay": 0.05,
    "optimizer.base_learning_rate": 1.5e-4,
    "optimizer.learning_rate_rule": "linear_256",
    "optimizer.final_learning_rate": 0.0,
    "optimizer.clip_norm": 0.0,
    "schedule.unit": "epochs",
    "schedule.length": 800.0,
    "schedule.warmup": 40.0,
    "objective.name": "mae",
    "objective.mask_ratio": 0.75,
    "objective.decoder_width": 512,
    "objective.decoder_depth": 8,
    "objective.decoder_heads": 16,
    "objective.normalize_targets": True,
    "objective.min_crop_area": 0.2,
    "objective.max_crop_area": 1.0,
    "objective.horizontal_flip": 0.5,
    "objective.vertical_flip": 0.0,
    "backbone.image_size": 224,
    "backbone.position": "sincos",
    "backbone.stem": "patch",
    "backbone.registers": 0,
    "backbone.feed_forward": "mlp",
    "backbone.mlp_ratio": 4.0,
    "backbone.layer_scale": 0.0,
    "backbone.drop_path": 0.0,
    "backbone.initialization": "xavier_uniform",
    "data.pixel_mean": (0.485, 0.456, 0.406),
    "data.pixel_std": (0.229, 0.224, 0.225),
}
# Width, depth, heads, patch: S from Touvron et al. 2020, table 1; B, L, H from Dosovitskiy et al.
# 2020, table 1; MAE's H is H/14.
SIZES = {
    "mae_vits16": (384, 12, 6, 16),
    "mae_vitb16": (768, 12, 12, 16),
    "mae_vitl16": (1024, 24, 16, 16),
    "mae_vith14": (1280, 32, 16, 14),
}


# mmpretrain, configs/maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py.
MASKFEAT = {
    "data.global_batch_size": 2048,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.05,
    "optimizer.final_weight_decay": 0.05,
    "optimizer.final_learning_rate": 0.0,
    "optimizer.clip_norm": 0.02,
    "schedule.unit": "epochs",
    "schedule.length": 300.0,
    "schedule.warmup": 30.0,
    "objective.name": "maskfeat",
    "objective.min_block_patches": 15,
    "objective.min_crop_area": 0.5,
    "objective.max_crop_area": 1.0,
    "objective.horizontal_flip": 0.5,
    "backbone.image_size": 224,
    "backbone.position": "learned",
    "backbone.layer_scale": 0.0,
    "backbone.drop_path": 0.0,
    "backbone.initialization": "truncated_normal",
    "data.pixel_mean": (0.485, 0.456, 0.406),
    "data.pixel_std": (0.229, 0.224, 0.225),
}


def value_at(config: RunConfig, path: str) -> Any:
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("name", SIZES)
def test_mae_recipes_have_the_published_values(name: str) -> None:
    config = find_recipe(name)
    found = {path: value_at(config, path) for path in MAE}
    assert found == MAE
    backbone = config.backbone
    size = (backbone.width, backbone.depth, backbone.heads, backbone.patch_size)
    assert size == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_mae_recipes_reach_the_published_learning_rate(name: str) -> None:
    plan = make_plan(find_recipe(name), Machine(64, 8, "cuda"), DataFacts(1_281_167, "imagenet"))
    assert plan.peak_learning_rate == pytest.approx(2.4e-3)
    assert plan.accumulation == 1  # 64 images on each of 64 GPUs, as PRETRAIN.md runs it


def test_maskfeats_recipe_has_the_published_values() -> None:
    config = find_recipe("maskfeat_vitb16")
    assert {path: value_at(config, path) for path in MASKFEAT} == MASKFEAT
    objective, backbone = config.objective, config.backbone
    assert isinstance(objective, MaskFeatConfig)
    assert objective.num_hidden(backbone) == 78
    assert (backbone.width, backbone.depth, backbone.heads, backbone.patch_size) == (
        768,
        12,
        12,
        16,
    )
    plan = make_plan(config, Machine(8, 8, "cuda"), DataFacts(1_281_167, "imagenet"))
    assert plan.peak_learning_rate == pytest.approx(1.6e-3)


def test_the_recipe_for_small_data_differs_in_size_and_length_only() -> None:
    changed = differences(find_recipe("mae_vitb16"), find_recipe("mae_small_data"))
    objective = {path for path in changed if path.startswith("objective.")}
    assert objective == {f"objective.decoder_{what}" for what in ("width", "depth", "heads")}
    config = find_recipe("mae_small_data")
    assert config.backbone.num_patches == 64
    # A few thousand images fill at least a batch, and its lanes.
    assert make_plan(config, Machine(1, 2, "cpu"), DataFacts(1000, "x")).total_steps == 1550


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_says_its_command(name: str) -> None:
    recipe = RECIPES[name]
    assert find_recipe(name).recipe == recipe.name == name
    assert recipe.command == f"ssl-vit pretrain {name} --run RUN data.shards=SHARDS"
    assert re.search(r"\d{4}, (arXiv \d{4}\.\d{5}|[A-Z]\w+)$|^our own runs$", recipe.source)
    # The objective trained and the network of the title are those of the config.
    assert recipe.method.split()[0] in (type(recipe().objective).__doc__ or "")
    if size := re.match(r"ViT-\w/(\d+)", recipe.network):
        assert recipe().backbone.patch_size == int(size[1])
    figures = re.search(r"\d\d(\.\d| %)", recipe.expected)
    assert figures or recipe.expected.startswith(("no published figure", "not measured"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_config(name: str) -> None:
    config = find_recipe(name)
    assert validate(RunConfig, to_plain(config), name) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_printed_with_its_comments_is_read_back_as_the_recipe(name: str, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(commented_yaml(find_recipe(name), RECIPES[name].description()))
    # Complete: a file that leaves settings out would take them from the recipe that it names.
    assert validate(RunConfig, read_yaml(file), str(file)) == find_recipe(name)
    assert dict(leaves(read_yaml(file))).keys() == dict(leaves(to_plain(find_recipe(name)))).keys()
    assert read_config(str(file), [], is_smoke=False) == find_recipe(name)


def test_a_printed_recipe_explains_every_setting() -> None:
    text = commented_yaml(find_recipe("mae_vitb16"), RECIPES["mae_vitb16"].description())
    assert text.startswith("# MAE, ViT-B/16.\n#\n# ssl-vit pretrain mae_vitb16 --run RUN")
    assert "# Source: He et al. 2021, arXiv 2111.06377; table 8 (800 epochs" in text
    assert (
        "# Masked autoencoder, MAE (He et al. 2021, arXiv 2111.06377).\n"
        "objective:\n"
        "\n"
        "  # Which objective this section configures.\n"
        "  # Allowed: mae\n"
        "  name: mae\n"
        "\n"
    ) in text
    assert (
        '  # Share of the patches that are hidden; the count is exact (section 3, "Masking").\n'
        "  # Allowed: 0 < mask_ratio < 1\n"
        "  mask_ratio: 0.75\n"
    ) in text
    assert "  # Allowed: sincos, learned, relative\n  position: sincos\n" in text
    assert "  # Allowed: a whole number from 0 to 1024, auto\n  workers: auto\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    # Every value has a comment right above it (list items and the sections' own names too).
    lines = [line.strip() for line in text.splitlines()]
    for above, line in pairwise(lines):
        is_value = line and not line.startswith(("#", "- "))
        assert not is_value or above.startswith("#"), line


@pytest.mark.parametrize("name", RECIPES)
def test_a_smoke_twin_is_a_valid_config_with_a_plan(name: str) -> None:
    twin = smoke(find_recipe(name))
    # model_copy does not validate, so it is done here.
    assert validate(RunConfig, to_plain(twin), name) == twin
    for world_size in (1, 2):
        plan = make_plan(twin, Machine(world_size, 2, "cpu"), DataFacts(48, "x"))
        assert (plan.total_steps, plan.warmup_steps, plan.workers) == (20, 4, 1)
        assert plan.micro_batch_size * plan.accumulation * world_size == 8
    assert twin.backbone.num_patches == 16


@pytest.mark.parametrize("name", RECIPES)
def test_a_smoke_twin_keeps_every_switch(name: str) -> None:
    config = find_recipe(name)
    switches = (
        *("backbone.patch_size", "backbone.stem", "backbone.position", "backbone.registers"),
        *("backbone.feed_forward", "backbone.layer_scale", "backbone.drop_path"),
        *("data.pixel_mean", "data.pixel_std", "optimizer.betas", "optimizer.clip_norm"),
        *("engine.zero_stage", "recipe", "seed"),
    )
    changed = differences(config, smoke(config))
    assert not set(switches) & set(changed)
    sizes = re.compile(
        r"objective\.(\w+_(width|depth|heads|hidden)|(ibot_)?(prototypes|bottleneck)|head_hidden"
        r"|local_(crops|size)|min_block_patches|codebook_size|code_dim|aggregate_after"
        r"|validate_every_steps)"
    )
    assert all(sizes.fullmatch(path) for path in changed if path.startswith("objective."))


def test_a_smoke_twin_can_be_overridden_like_its_recipe() -> None:
    twin = apply_overrides(smoke(find_recipe("mae_vits16")), ["backbone.stem=conv"])
    assert twin.backbone.stem == "conv"
    assert twin.backbone.width == 48


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        find_recipe("mae_vits17")
    assert "mae_vits17" in caught.value.problem
    assert all(name in caught.value.remedy for name in RECIPES)


def test_a_file_that_leaves_settings_out_takes_them_from_the_recipe_it_names(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: mae_vitl16\nobjective: {mask_ratio: 0.6}\n")
    config = read_config(str(file), ["seed=3"], is_smoke=False)
    assert config.data.global_batch_size == 4096
    assert (config.backbone.width, config.objective.mask_ratio, config.seed) == (1024, 0.6, 3)
    assert config.objective.decoder_depth == find_recipe("mae_vitl16").objective.decoder_depth


def test_a_run_folder_is_read_as_its_config(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(to_yaml(find_recipe("mae_vitb16")))
    assert read_config(str(tmp_path), [], is_smoke=False) == find_recipe("mae_vitb16")


def test_another_recipes_name_is_no_setting():
    with pytest.raises(UserError, match="only change the name"):
        read_config("mae_vitl16", ["recipe=mae_vitb16"], is_smoke=False)


def test_a_file_of_other_bytes_is_refused(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_config(str(file), [], is_smoke=False)


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("recipe: [mae_vits16]\n")
    with pytest.raises(UserError, match="recipe="):
        read_config(str(file), [], False)
