"""Portable exports: `backbone.safetensors` (timm's names) and `backbone.json` (how to
build and feed it).

Evaluations read nothing else. torch is imported inside the functions that need it, so that a wrong
path is reported before anything slow is loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ssl_vit
from ssl_vit.config import Config, to_plain, validate
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.files import OptionalWrites, path_of, replacing, share_like_folder
from ssl_vit.foreign import first_line, read_json
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.given import Codes, Positive
from ssl_vit.run.config import CONFIG_FILE, RunConfig

if TYPE_CHECKING:
    from ssl_vit.objectives.objective import Objective

FORMAT = "ssl-vit-backbone-1"
WEIGHTS_FILE = "backbone.safetensors"
INFO_FILE = "backbone.json"
TOKENIZER_FORMAT = "ssl-vit-tokenizer-1"
TOKENIZER_WEIGHTS, TOKENIZER_INFO = "tokenizer.safetensors", "tokenizer.json"


class ExportInfo(Config):
    """The content of `backbone.json`."""

    format: str = FORMAT
    """Version of this file's layout."""
    backbone: VitConfig
    """Configuration that builds the network."""
    pixel_mean: tuple[float, float, float]
    """Per-channel mean to subtract from pixels in [0, 1]."""
    pixel_std: tuple[Positive, Positive, Positive]
    """Per-channel standard deviation to divide by."""
    value_range: tuple[float, float] | None = None
    """Stored values shown as black and white in images of more than 8 bits; None: no such images.
    """
    no_data: float | None = None
    """Stored value of pixels without data, which are shown as black; None: no such value."""
    recipe: str
    """The recipe it was trained with."""
    step: int
    """Optimizer steps it was trained for."""
    data_fingerprint: str
    """Fingerprint of the shard set it was trained on."""
    ssl_vit_version: str
    """Version that wrote it."""

    @property
    def values(self) -> ValueRange | None:
        """How values of more than 8 bits are shown."""
        return self.value_range and ValueRange(*self.value_range, self.no_data)

    @classmethod
    def of_run(cls, config: RunConfig, data_fingerprint: str) -> "ExportInfo":
        """The description of a run's exports, still at step 0."""
        values = config.data.values
        return cls(
            backbone=config.backbone,
            pixel_mean=config.data.pixel_mean,
            pixel_std=config.data.pixel_std,
            value_range=values and (values.low, values.high),
            no_data=values and values.no_data,
            recipe=config.recipe,
            step=0,
            data_fingerprint=data_fingerprint,
            ssl_vit_version=ssl_vit.__version__,
        )


class TokenizerInfo(ExportInfo):
    """The content of `tokenizer.json`: the tokenizer's encoder, like a backbone, and its codes."""

    format: str = TOKENIZER_FORMAT
    """Version of this file's layout."""
    codes: Codes
    """Sizes of the codebook."""


class RunExports:
    """The `exports/` of one run folder.

    Args:
        folder: Created with the first export.
        objective: Selects the backbones to export.
        info: Description of the run's exports; the step is filled in.
        every_steps: Steps between two exports.
        is_first: Whether this rank writes.
    """

    def __init__(
        self,
        folder: Path,
        objective: "Objective",
        info: ExportInfo,
        every_steps: int,
        is_first: bool,
    ) -> None:
        self.folder, self.objective, self.info = folder, objective, info
        self.every_steps, self.is_first = every_steps, is_first
        self._effort = OptionalWrites(f"an export to {folder}", "Training continues without it")

    def write(self, step: int) -> bool:
        """Write an export; every rank calls it. False if it could not be written (reported)."""
        if not self.is_first:
            return True
        state = {name: module.state_dict() for name, module in self.objective.exported().items()}
        info = self.info.model_copy(update={"step": step})
        with self._effort.attempt():
            write_export(self.folder / f"step_{step:08d}", state, info, self.objective.codes)
        return not self._effort.failed


def write_export(
    folder: Path, state: dict[str, dict[str, Any]], info: ExportInfo, codes: Codes | None = None
) -> None:
    """Write one export; `backbone.json` is written last and marks it as complete.

    Args:
        folder: Created if missing.
        state: State dicts by the name of their file, `backbone` among them, on any device.
        info: Its description.
        codes: Sizes of the codebook of `tokenizer`, if that is one of them.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from ssl_vit.models.timm_names import to_timm

    folder.mkdir(parents=True, exist_ok=True)
    if "backbone" in state:
        state = state | {"backbone": to_timm(state["backbone"], info.backbone)}
    for name, values in state.items():
        tensors = {key: value.detach().float().cpu().contiguous() for key, value in values.items()}
        with replacing(folder / f"{name}.safetensors") as partial:
            try:
                save_file(tensors, partial, metadata={"format": "pt"})
            except SafetensorError as error:  # which wraps those of the file system
                raise OSError(first_line(error)) from error
            share_like_folder(partial)
    if codes is not None:
        described = TokenizerInfo(**{**dict(info), "format": TOKENIZER_FORMAT}, codes=codes)
        with replacing(folder / TOKENIZER_INFO) as partial:
            partial.write_text(json.dumps(to_plain(described), indent=1) + "\n")
    with replacing(folder / INFO_FILE) as partial:
        partial.write_text(json.dumps(to_plain(info), indent=1) + "\n")


def find_export(path: Path | str) -> Path:
    """The export folder for a path: the newest export of a run folder, an export folder itself, or
    the folder of one of its files.

    Raises:
        UserError: There is no export.
    """
    path = path_of(str(path))
    if path.name in (WEIGHTS_FILE, INFO_FILE, TOKENIZER_WEIGHTS, TOKENIZER_INFO):
        path = path.parent
    if (path / INFO_FILE).is_file():
        return path
    complete = sorted(path.glob(f"exports/step_*/{INFO_FILE}"))
    if complete:
        return complete[-1].parent
    remedy = "give a run folder that has one, or one of its exports/step_… folders"
    if (path / CONFIG_FILE).is_file():
        remedy = (
            "a run writes one at its end and every export.every_steps steps; rerun it with "
            "export.every_steps=100 to get one soon"
        )
    raise UserError(
        f"no export at {path} (looked for {INFO_FILE} there and in exports/step_*/)", remedy
    )


def read_export_info(path: Path | str) -> ExportInfo:
    """The description of an export.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    file = find_export(path) / INFO_FILE
    values = read_json(file, "export again")
    if values.get("format") != FORMAT:
        raise UserError(f"{file} is not in the format {FORMAT}", "export again with this version")
    return validate(ExportInfo, values, str(file))


def read_tokenizer_info(path: Path | str) -> TokenizerInfo:
    """The description of an exported tokenizer; arguments as of :func:`find_export`.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    folder = find_export(path)
    if not (folder / TOKENIZER_INFO).is_file():
        raise UserError(
            f"{folder} has no tokenizer (no {TOKENIZER_INFO})",
            "give the folder of a run of a tokenizer recipe, such as tokenizer_pixels_small_data, "
            "or one of its exports/step_… folders",
        )
    file = folder / TOKENIZER_INFO
    values = read_json(file, "export again")
    if values.get("format") != TOKENIZER_FORMAT:
        raise UserError(
            f"{file} is not in the format {TOKENIZER_FORMAT}", "export again with this version"
        )
    return validate(TokenizerInfo, values, str(file))
