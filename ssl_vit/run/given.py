"""The network that an objective reads: described in the config before a run starts, its weights
loaded when the objective is built.
"""

from typing import TYPE_CHECKING

from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.exports.dalle import describe_dalle
from ssl_vit.exports.folder import (
    TOKENIZER_INFO,
    TOKENIZER_WEIGHTS,
    WEIGHTS_FILE,
    TokenizerInfo,
    find_export,
    read_export_info,
    read_tokenizer_info,
)
from ssl_vit.files import hash_file, path_of
from ssl_vit.objectives.given import DalleConfig, Given, GivenNetwork
from ssl_vit.run.config import RunConfig

if TYPE_CHECKING:
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
    network, origin, values = _describe(given)
    changes = {f"{given.setting}_info": network}
    config = config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
    notes = [f"{given.setting}: {origin} of {given.path}"]
    if config.objective.trains_given and config.backbone != network.backbone:
        config = config.model_copy(update={"backbone": network.backbone})
        notes.append(f"backbone: that of the {given.setting}")
    if values is not None and values != config.data.values:
        notes.append(
            f"warning: the {given.setting} was trained with values {values} as black and white, "
            f"this run has {config.data.values or 'no range'}; data.value_range="
            f"[{values.low:g},{values.high:g}] would be the same"
        )
    return config, tuple(notes)


def _describe(given: Given) -> tuple[GivenNetwork, str, ValueRange | None]:
    """The network, where it comes from for a person, and the value range of its training."""
    place = path_of(given.path)
    is_tokenizer = given.kind == "tokenizer"
    if is_tokenizer and not (place.parent / TOKENIZER_INFO).is_file():
        dalle = describe_dalle(place)
        if dalle is not None:
            return dalle, "DALL-E's encoder", None
    try:
        info = (read_tokenizer_info if is_tokenizer else read_export_info)(given.path)
    except UserError as error:
        raise UserError(f"objective.{given.setting}: {error.problem}", error.remedy) from None
    weights = find_export(given.path) / (TOKENIZER_WEIGHTS if is_tokenizer else WEIGHTS_FILE)
    if not weights.is_file():
        raise UserError(f"{weights} is missing", "export again, or give another")
    network = GivenNetwork(
        sha256=hash_file(weights),
        backbone=info.backbone,
        pixel_mean=info.pixel_mean,
        pixel_std=info.pixel_std,
        codes=info.codes if isinstance(info, TokenizerInfo) else None,
    )
    return network, f"{info.recipe}, step {info.step:,},", info.values


def load_given(objective: "Objective", config: RunConfig) -> None:
    """Load the weights of the given network into a new objective, if it has one.

    Raises:
        UserError: They cannot be loaded.
    """
    given = config.objective.given
    if given is None:
        return
    from ssl_vit.exports.dalle import load_dalle
    from ssl_vit.exports.loading import load_backbone, load_tokenizer

    network = getattr(config.objective, f"{given.setting}_info")
    if isinstance(network.backbone, DalleConfig):
        objective.load_given(load_dalle(path_of(given.path), network.backbone))
    elif given.kind == "tokenizer":
        objective.load_given(load_tokenizer(given.path))
    else:
        objective.load_given(load_backbone(given.path))
