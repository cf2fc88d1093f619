"""`ssl-vit finetune`: from an export and labeled shards to the run that trains a classifier.

It only chooses a recipe and its settings; what runs is `ssl-vit pretrain`, which resumes, shards
and logs as ever. No torch here.
"""

import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_vit.config import differences, to_plain
from ssl_vit.data.class_names import classes_in
from ssl_vit.data.labels import check_labels, match_labels
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import INFO_FILE, ExportInfo, find_export, read_export_info
from ssl_vit.files import path_of
from ssl_vit.recipes import RECIPES, find_recipe
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder

SMALL = "finetune_small_data"
"""The recipe for exports that no other is for."""
_PREFIX = "finetune_"
_DINOV2 = "finetune_dinov2_vitl14"
_BY_WIDTH = (
    (1280, "finetune_mae_vith14"),
    (1024, "finetune_mae_vitl16"),
    (384, "finetune_mae_vitb16"),
)
_LARGE_WIDTH = 1024
_PLAIN_PATH = re.compile(r"[A-Za-z_./][A-Za-z0-9_.+@-]*/[A-Za-z0-9_.+@/-]*")
# Fewest steps of an epoch: a few thousand images are fewer batches of 1024 than a run needs.
_STEPS_PER_EPOCH = 16
_LEAST_BATCH = 16
# Others report that below it a backbone that is trained too is worse than a linear layer.
_FEW_IMAGES = 1_000
# Settings of the backbone that are the recipe's; all others are the export's.
_OF_RECIPE = ("drop_path", "drop_path_rule", "initialization")
# A trial: few steps of few images, in the network and at the resolution that are wanted.
_SMOKE = (
    *("schedule.unit=steps", "schedule.length=20", "schedule.warmup=4"),
    *("data.global_batch_size=8", "data.lanes=4", "engine.micro_batch_size=4"),
    *("checkpoint.every_steps=5", "objective.validate_every_steps=5", "engine.workers=1"),
)


@dataclass(frozen=True)
class FineTuning:
    """What `ssl-vit pretrain` is called with."""

    recipe: str
    words: tuple[str, ...]
    """Settings as path=value, those of the user last."""
    export: Path
    """Where the backbone comes from."""
    notes: tuple[str, ...] = ()
    """What to say of the settings."""


def choose_recipe(info: ExportInfo) -> str:
    """The fine-tuning recipe for an export: that of its own recipe or, for a large DINOv2, method;
    else of MAE's network of about its size; for small ones our own.
    """
    if info.recipe in RECIPES and info.recipe.startswith(_PREFIX):
        return info.recipe
    if f"{_PREFIX}{info.recipe}" in RECIPES:
        return f"{_PREFIX}{info.recipe}"
    if info.recipe.startswith("dinov2_") and info.backbone.width >= _LARGE_WIDTH:
        return _DINOV2
    return next((name for width, name in _BY_WIDTH if info.backbone.width >= width), SMALL)


def plan_finetuning(
    source: Path,
    run: Path,
    train: str,
    image_size: Sequence[int],
    *,
    validation: str = "",
    recipe: str = "",
    is_smoke: bool = False,
    overrides: Sequence[str] = (),
) -> FineTuning:
    """Choose the recipe and its settings.

    Args:
        source: A run folder (its newest export) or an export folder.
        run: The run folder; if it exists, the run continues from the export it was started from.
        train: Labeled shards to train on.
        image_size: Side of the crops in pixels, or height and width; empty: as in pre-training.
        validation: Labeled shards for validation; empty: a part of train is held out.
        recipe: Its name; empty: chosen by the export's.
        is_smoke: Whether to train for a few steps only.
        overrides: The user's settings as path=value.

    Raises:
        UserError: No export is found, or the recipe does not exist.
    """
    if len(image_size) > 2:
        raise UserError(
            f"--image-size is given {len(image_size)} times",
            "give it once for a square, or twice for height and width",
        )
    before = _started_from(RunFolder(run))
    if before is not None and not (before / INFO_FILE).is_file():
        # Gone, and no longer needed: the run has its own config and checkpoints.
        words = (f"data.shards={_quoted(train)}", *overrides)
        return FineTuning(str(RunFolder(run).config), words, before)
    export = before or find_export(source).resolve()
    if before is not None:
        _check_same_source(run, before, source)
    info = read_export_info(export)
    name = recipe or choose_recipe(info)
    config = _labeled_recipe(name)
    num_images = open_shards(train).num_samples
    words = [
        f"data.shards={_quoted(train)}",
        f"resume_from={_quoted(str(export))}",
        *_words_of(config, info, image_size),
        *_batch_words(config, num_images),
        *([f"objective.validation={_quoted(validation)}"] if validation else []),
        *(_SMOKE if is_smoke else ()),
    ]
    given = {word.partition("=")[0] for word in overrides}
    if "schedule.length" in given:
        given.add("schedule.warmup")  # of a trial's length
    words = [word for word in words if word.partition("=")[0] not in given]
    if "objective.pooling=map" in overrides:
        given.add("objective.head")  # attention pooling starts from random weights
    few, notes = _for_few(name, info, num_images, given)
    return FineTuning(name, (*words, *few, *overrides), export, notes)


def _labeled_recipe(name: str) -> RunConfig:
    config = find_recipe(name)
    if not config.objective.needs_labels:
        raise UserError(
            f"--recipe {name} does not learn from labels",
            f"choose from {', '.join(each for each in RECIPES if each.startswith(_PREFIX))}",
        )
    return config


def check_test_set(test: str, train: str, separator: str = "") -> None:
    """Find a test set's mistakes before hours of training.

    Args:
        test, train: Labeled shards.
        separator: ``ClassificationConfig.label_separator``.

    Raises:
        UserError: It cannot be opened, has no labels or other classes, or is the training set.
    """
    shards, ours = open_shards(test), open_shards(train)
    check_labels(shards, least=1)
    check_labels(ours, least=1)
    if shards.fingerprint == ours.fingerprint:
        raise UserError(
            f"--train {train} and --test {test} are the same images",
            "use a separate test set: accuracy on train images is meaningless",
        )
    if shards.values and not ours.values:
        raise UserError(
            f"--test {test} has images of more than 8 bits, and --train {train} has not",
            "use test images of the same kind",
        )
    classes = classes_in(ours.classes, separator) if separator else ours.classes
    _, known, unknown = match_labels(shards, classes, separator)
    if unknown:
        raise UserError(
            f"{(~known).sum():,} of {len(known):,} test images are of classes that --train lacks: "
            f"{', '.join(unknown[:10])}",
            "use test images of the same classes, or leave --test out and run  ssl-vit eval "
            "classifier … --known-classes-only  at the end",
        )


def _check_same_source(run: Path, before: Path, source: Path) -> None:
    """Refuse an export of another run than the one that this run was started from."""
    if find_export(source).resolve().parent != before.resolve().parent:
        raise UserError(
            f"{run} was started from {before}, not from {source}", "choose another --run"
        )


def _quoted(location: str) -> str:
    """A location as the value of a word: quoted only where YAML could misread it, since the words
    are also printed for a shell's `$(…)`. A list of several stays one.
    """
    if location.startswith("[") or _PLAIN_PATH.fullmatch(location):
        return location
    return json.dumps(location, ensure_ascii=False)


def _started_from(folder: RunFolder) -> Path | None:
    """The export that an existing run was started from."""
    if not folder.config.is_file():
        return None
    before = folder.read_config().resume_from
    return path_of(before) if before else None


def _for_few(
    recipe: str, info: ExportInfo, num_images: int, given: Set[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Where there are few images: words for a frozen backbone with a head that starts from its
    linear probe, and what to say of it.
    """
    frozen = "optimizer.freeze_units"
    if recipe != SMALL or num_images >= _FEW_IMAGES or frozen in given:
        return [], ()
    own = {frozen: info.backbone.depth, "objective.head": "probe", "backbone.drop_path": 0}
    own["objective.patch_dropout"] = 0  # steps of a head alone are cheap
    words = [f"{name}={value}" for name, value in own.items() if name not in given]
    note = (
        f"{num_images:,} training images are few: the backbone's blocks stay frozen ({words[0]}); "
        f"{frozen}=0 trains it too"
    )
    return words, (note,)


def _batch_words(config: RunConfig, num_images: int) -> list[str]:
    """A smaller batch where the data is small, with the learning rate in proportion."""
    batch = config.data.global_batch_size
    most = max(num_images // _STEPS_PER_EPOCH, _LEAST_BATCH)
    if batch <= most:
        return []
    smaller = 1 << most.bit_length() - 1
    words = [f"data.global_batch_size={smaller}", f"data.lanes={min(config.data.lanes, smaller)}"]
    rates = ["final_learning_rate"]
    if config.optimizer.learning_rate_rule == "absolute":
        rates.insert(0, "base_learning_rate")
    for name in rates:
        rate = getattr(config.optimizer, name) * smaller / batch
        words += [f"optimizer.{name}={rate:.6g}"] if rate else []
    return words


def _words_of(config: RunConfig, info: ExportInfo, image_size: Sequence[int]) -> list[str]:
    """The export's network and pixels, where the recipe has others."""
    own = {name: getattr(config.backbone, name) for name in _OF_RECIPE}
    if info.backbone.position == "relative":
        own["relative_tables"] = "per_block"  # as BEiT is fine-tuned
    if image_size:
        own["image_size"] = image_size[0] if len(image_size) == 1 else tuple(image_size)
    wanted = info.backbone.model_copy(update=own)
    changed = {
        f"backbone.{name}": value
        for name in differences(config.backbone, wanted)
        for value in [to_plain(wanted)[name]]
    }
    pixels: dict[str, Any] = {"pixel_mean": info.pixel_mean, "pixel_std": info.pixel_std}
    if info.values:
        pixels |= {"value_range": (info.values.low, info.values.high)}
        pixels |= {"no_data": info.values.no_data} if info.values.no_data is not None else {}
    if info.backbone.hides != "drop" and getattr(config.objective, "patch_dropout", 0):
        changed["objective.patch_dropout"] = 0
    changed |= {
        f"data.{name}": value
        for name, value in pixels.items()
        if value != getattr(config.data, name)
    }
    return [f"{path}={json.dumps(value, separators=(',', ':'))}" for path, value in changed.items()]
