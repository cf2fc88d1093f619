"""The network that an objective reads: described in the config before a run starts, its weights
loaded when the objective is built.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

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
from ssl_vit.files import hash_file, path_of, spelled_in_utf8
from ssl_vit.foreign import first_line
from ssl_vit.objectives.given import DalleConfig, Given, GivenNetwork
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder

if TYPE_CHECKING:
    from ssl_vit.objectives.objective import Objective


def settle_objective(
    config: RunConfig, num_images: int, folder: RunFolder | None = None
) -> tuple[RunConfig, tuple[str, ...]]:
    """The config with what its objective takes from files and from the data filled in, and messages
    about it. Needs no torch.

    Args:
        num_images: Number of images in the data.
        folder: The run folder; None if there is none.

    Raises:
        UserError: A network is not given, cannot be found, is not the one the run was started with,
            or does not fit.
    """
    config, notes = _with_given(config, folder)
    batch = config.data.global_batch_size
    try:
        objective = config.objective.fit_to_data(config.backbone, num_images, batch)
        objective.check(config.backbone)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise UserError(problem, remedy) from None
    return config.model_copy(update={"objective": objective}), notes


def _with_given(config: RunConfig, folder: RunFolder | None) -> tuple[RunConfig, tuple[str, ...]]:
    given = config.objective.given
    if given is None:
        return config, ()
    if not given.path:
        raise UserError(f"objective.{given.setting} is not given", given.remedy)
    if "://" in given.path:
        raise UserError(
            f"objective.{given.setting}={given.path} is a URL", "download it, and give the folder"
        )
    if config.objective.is_backbone_given and config.resume_from:
        raise UserError(
            f"resume_from has no effect with objective.target=kmeans, whose encoder is objective."
            f"{given.setting}",
            "leave one of the two out",
        )
    before = _sha256_before(given, folder)
    found = _describe(given) if before is None else _find(given, before)
    if found is None:
        raise UserError(
            f"objective.{given.setting}={given.path} has another network than the one that "
            f"{folder.root if folder else 'this run'} was started with",
            "give the exports/step_… folder that it was started with, or choose another --run",
        )
    changes = {given.setting: found.path, f"{given.setting}_info": found.network}
    config = config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
    notes = [f"{given.setting}: {found.origin} from {found.path}"]
    if config.objective.is_backbone_given:
        config, more = _with_its_backbone(config, found.network, given.setting)
        notes += more
    theirs, ours = found.values, config.data.values
    if theirs and ours and theirs != ours:
        notes.append(
            f"warning: the {given.setting} was trained with values {theirs} as black and white, "
            f"this run has {ours}; set data.value_range=[{theirs.low:g},{theirs.high:g}] to match"
        )
    elif bool(theirs) != bool(ours) and config.data.source == "shards":
        kinds = ("8 bits", "more than 8 bits")
        notes.append(
            f"warning: the {given.setting} was trained on images of {kinds[bool(theirs)]}, and "
            f"this run has images of {kinds[bool(ours)]}"
        )
    return config, tuple(notes)


def _with_its_backbone(
    config: RunConfig, network: GivenNetwork, setting: str
) -> tuple[RunConfig, list[str]]:
    """The run's backbone and its normalization of pixels are the given network's."""
    pixels = {"pixel_mean": network.pixel_mean, "pixel_std": network.pixel_std}
    changed = config.model_copy(
        update={"backbone": network.backbone, "data": config.data.model_copy(update=pixels)}
    )
    if changed == config:
        return config, []
    note = f"backbone.*, data.pixel_mean and data.pixel_std are taken from objective.{setting}"
    return changed, [note]


class _Found(NamedTuple):
    """A network that was found in a file."""

    network: GivenNetwork
    path: str
    """The export folder or file that has it."""
    origin: str
    """For a person."""
    values: ValueRange | None
    """The value range of its training."""


def _sha256_before(given: Given, folder: RunFolder | None) -> str | None:
    """The checksum of the network that the run in this folder was started with."""
    if folder is None or not folder.config.is_file():
        return None
    network = getattr(folder.read_config().objective, f"{given.setting}_info", None)
    return network and network.sha256


def _find(given: Given, sha256: str) -> _Found | None:
    """The network with this checksum: the one at the path, or another export of the same run."""
    newest = _describe(given)
    if newest.network.sha256 == sha256:
        return newest
    for export in sorted(path_of(given.path).glob("exports/step_*"), reverse=True):
        weights = export / _weights_file(given)
        if weights.is_file() and hash_file(weights) == sha256:
            return _describe(given._replace(path=str(export)))
    return None


def _weights_file(given: Given) -> str:
    return TOKENIZER_WEIGHTS if given.kind == "tokenizer" else WEIGHTS_FILE


def _describe(given: Given) -> _Found:
    place = path_of(given.path)
    is_tokenizer = given.kind == "tokenizer"
    if is_tokenizer and not (place.parent / TOKENIZER_INFO).is_file():
        dalle = describe_dalle(place)
        if dalle is not None:
            return _Found(dalle, given.path, "DALL-E's encoder", None)
    try:
        info = (read_tokenizer_info if is_tokenizer else read_export_info)(given.path)
    except UserError as error:
        raise UserError(f"objective.{given.setting}: {error.problem}", error.remedy) from None
    export = find_export(given.path)
    weights = export / _weights_file(given)
    if not weights.is_file():
        raise UserError(
            f"{weights} is missing", f"export again, or give another objective.{given.setting}"
        )
    if isinstance(info, TokenizerInfo):
        _check_shapes(weights, info)
    network = GivenNetwork(
        sha256=hash_file(weights),
        backbone=info.backbone,
        pixel_mean=info.pixel_mean,
        pixel_std=info.pixel_std,
        codes=info.codes if isinstance(info, TokenizerInfo) else None,
    )
    return _Found(network, str(export), f"{info.recipe}, step {info.step:,},", info.values)


def _check_shapes(weights: Path, info: TokenizerInfo) -> None:
    """Compare the sizes in a tokenizer's file with its description, without torch.

    Raises:
        UserError: They differ, or the file cannot be read.
    """
    codes, width = info.codes, info.backbone.width
    wanted = {
        "codebook.vectors": [codes.num, codes.dim],
        "encoder.cls_token": [1, 1, width],
        **({"project.2.weight": [codes.dim, width]} if codes.is_projected else {}),
    }
    remedy = "give another export of the run that trained it"
    if not codes.is_projected and codes.dim != width:
        raise UserError(f"codes of {codes.dim} dimensions, but features of {width}", remedy)
    try:
        with spelled_in_utf8(weights) as place, safe_open(place, framework="numpy") as file:
            names = set(file.keys())
            found = {name: file.get_slice(name).get_shape() for name in wanted if name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {weights}: {first_line(error)}", remedy) from None
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = "lacks" if name not in found else f"has {tuple(found[name])} as"
            raise UserError(f"{weights} {has} {name}, described as {tuple(shape)}", remedy)


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
