"""The network that an objective reads: described in the config before a run starts, its weights
loaded when the objective is built.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.errors import UserError
from ssl_vit.exports.folder import (
    TOKENIZER_WEIGHTS,
    WEIGHTS_FILE,
    ExportInfo,
    TokenizerInfo,
    find_export,
    read_export_info,
    read_tokenizer_info,
)
from ssl_vit.files import hash_file
from ssl_vit.objectives.given import Given, GivenNetwork
from ssl_vit.run.config import RunConfig

if TYPE_CHECKING:
    from torch import nn

    from ssl_vit.objectives.objective import Objective


def settle_objective(config: RunConfig, num_images: int) -> tuple[RunConfig, tuple[str, ...]]:
    """The config with what its objective takes from files and from the data filled in, and messages
    about it. Needs no torch.

    Args:
        num_images: Number of images in the data.

    Raises:
        UserError: A network is not given, cannot be found, or does not fit.
    """
    config, notes = _with_given(config)
    batch = config.data.global_batch_size
    try:
        objective = config.objective.fitted(config.backbone, num_images, batch)
        objective.check(config.backbone)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise UserError(problem, remedy) from None
    return config.model_copy(update={"objective": objective}), notes


def _with_given(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    given = config.objective.given
    if given is None:
        return config, ()
    if not given.path:
        raise UserError(f"objective.{given.setting} is not given", given.remedy)
    info = _read_info(given)
    network = _described(info, weights_of(given))
    changes = {f"{given.setting}_info": network}
    config = config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
    notes = [f"{given.setting}: {info.recipe}, step {info.step:,}, of {given.path}"]
    if config.objective.trains_given and config.backbone != network.backbone:
        config = config.model_copy(update={"backbone": network.backbone})
        notes.append(f"backbone: that of the {given.setting}")
    if info.values != config.data.values and info.values is not None:
        notes.append(
            f"warning: the {given.setting} was trained with values {info.values} as black and "
            f"white, this run has {config.data.values or 'no range'}; "
            f"data.value_range={list(info.value_range or ())} would be the same"
        )
    return config, tuple(notes)


def _read_info(given: Given) -> ExportInfo:
    try:
        if given.kind == "tokenizer":
            return read_tokenizer_info(given.path)
        return read_export_info(given.path)
    except UserError as error:
        raise UserError(f"objective.{given.setting}: {error.problem}", error.remedy) from None


def weights_of(given: Given) -> Path:
    """The file with the given network's weights."""
    name = TOKENIZER_WEIGHTS if given.kind == "tokenizer" else WEIGHTS_FILE
    return find_export(given.path) / name


def _described(info: ExportInfo, weights: Path) -> GivenNetwork:
    if not weights.is_file():
        raise UserError(f"{weights} is missing", "export again, or give another")
    return GivenNetwork(
        sha256=hash_file(weights),
        backbone=info.backbone,
        pixel_mean=info.pixel_mean,
        pixel_std=info.pixel_std,
        codes=info.codes if isinstance(info, TokenizerInfo) else None,
    )


def load_given(objective: "Objective", config: RunConfig) -> None:
    """Load the weights of the given network into a new objective, if it has one.

    Raises:
        UserError: They cannot be loaded.
    """
    given = config.objective.given
    if given is not None:
        objective.load_given(_load(given))


def _load(given: Given) -> "nn.Module":
    from ssl_vit.exports.loading import load_backbone, load_tokenizer

    return load_tokenizer(given.path) if given.kind == "tokenizer" else load_backbone(given.path)
