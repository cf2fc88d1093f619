"""Portable exports: `backbone.safetensors` (timm's names) and `backbone.json` (how to
build and feed it).

Evaluations read nothing else. torch is imported inside the functions that need it, so that a wrong
path is reported before anything slow is loaded.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import model_validator

import ssl_vit
from ssl_vit.config import Config, to_plain, validate
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.files import OptionalWrites, path_of, replacing, share_like_folder
from ssl_vit.foreign import first_line, read_json
from ssl_vit.models.config import Pooling, VitConfig
from ssl_vit.objectives.given import Codes, Positive
from ssl_vit.run.config import CONFIG_FILE, RunConfig

if TYPE_CHECKING:
    from ssl_vit.objectives.objective import Objective

Info = TypeVar("Info", bound="ExportInfo")

FORMAT = "ssl-vit-backbone-1"
WEIGHTS_FILE = "backbone.safetensors"
INFO_FILE = "backbone.json"
TOKENIZER_FORMAT = "ssl-vit-tokenizer-1"
TOKENIZER_WEIGHTS, TOKENIZER_INFO = "tokenizer.safetensors", "tokenizer.json"
CLASSIFIER_FORMAT = "ssl-vit-classifier-1"
CLASSIFIER_WEIGHTS, CLASSIFIER_INFO = "classifier.safetensors", "classifier.json"


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

    @model_validator(mode="after")
    def _has_a_range(self) -> "ExportInfo":
        _ = self.values  # which checks itself
        return self

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


class ClassifierInfo(ExportInfo):
    """The content of `classifier.json`: of a backbone with its head."""

    format: str = CLASSIFIER_FORMAT
    """Version of this file's layout."""
    pooling: Pooling
    """What the head sees of the tokens."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    """What it was trained with. `binary`: each logit is that of a yes against a no."""
    label_separator: str = ""
    """Not empty: an image may be of several classes or none, whose names this joins."""


_INFOS: dict[str, type[ExportInfo]] = {"tokenizer": TokenizerInfo, "classifier": ClassifierInfo}


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
        self._replaced: list[tuple[int, int]] = []
        self._effort = OptionalWrites(f"an export to {folder}", "Training continues without it")

    def write(self, step: int) -> bool:
        """Write an export; every rank calls it. False if it could not be written (reported)."""
        if not self.is_first:
            return True
        state = {name: module.state_dict() for name, module in self.objective.exported().items()}
        info = self.info.model_copy(update={"step": step})
        with self._effort.attempt():
            write_export(self._place(step), state, info, self.objective.described())
        return not self._effort.failed

    def lacks(self, step: int) -> bool:
        """Whether the export of a step is gone; other ranks than the first never say so."""
        return self.is_first and not (self._place(step) / INFO_FILE).is_file()

    def repeat(self, step: int, later: int) -> bool:
        """Make the export of a step that of a later one too; its description keeps its step. False
        if it could not be written (reported).
        """
        if not self.is_first:
            return True
        with self._effort.attempt(), replacing(self._place(later)) as partial:
            shutil.rmtree(self._place(later), ignore_errors=True)
            shutil.copytree(self._place(step), partial)
        return not self._effort.failed

    def replace(self, step: int, later: int) -> None:
        """Note that the export of a step is to be deleted once a checkpoint has the later one."""
        self._replaced.append((step, later))

    def forget_replaced(self, saved: int) -> None:
        """Delete exports that were replaced, up to step ``saved``, unless they were due anyway: a
        kill before the next checkpoint would still need the others.
        """
        for step, later in [pair for pair in self._replaced if pair[1] <= saved]:
            self._replaced.remove((step, later))
            if self.is_first and step and step % self.every_steps:
                shutil.rmtree(self._place(step), ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Delete the exports of later steps, from before a kill: these steps are repeated."""
        for folder in self.folder.glob("step_*") if self.is_first else ():
            if folder > self._place(step):
                shutil.rmtree(folder, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"


def write_export(
    folder: Path,
    state: dict[str, dict[str, Any]],
    info: ExportInfo,
    described: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write one export; `backbone.json` is written last and marks it as complete.

    Args:
        folder: Created if missing.
        state: State dicts by the name of their file, `backbone` among them, on any device.
        info: Its description.
        described: What the descriptions of other files than `backbone` say besides, by their name;
            see :meth:`Objective.described`.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from ssl_vit.models.timm_names import classifier_to_timm, to_timm

    folder.mkdir(parents=True, exist_ok=True)
    if "backbone" in state:
        state = state | {"backbone": to_timm(state["backbone"], info.backbone)}
    if "classifier" in state:
        state = state | {"classifier": classifier_to_timm(state["classifier"], info.backbone)}
        # The trained norm is the head's: the backbone alone gets it, in place of an unused one.
        norm = {
            name.removeprefix("fc_"): value
            for name, value in state["classifier"].items()
            if name.startswith("fc_norm.")
        }
        state = state | {"backbone": state["backbone"] | norm}
    for name, values in state.items():
        tensors = {key: value.detach().float().cpu().contiguous() for key, value in values.items()}
        with replacing(folder / f"{name}.safetensors") as partial:
            try:
                save_file(tensors, partial, metadata={"format": "pt"})
            except SafetensorError as error:  # which wraps those of the file system
                raise OSError(first_line(error)) from error
            share_like_folder(partial)
    for name, fields in (described or {}).items():
        kind = _INFOS[name]
        own = kind.model_fields["format"].default
        whole = kind(**{**dict(info), **fields, "format": own})
        with replacing(folder / f"{name}.json") as partial:
            partial.write_text(json.dumps(to_plain(whole), indent=1) + "\n")
    with replacing(folder / INFO_FILE) as partial:
        partial.write_text(json.dumps(to_plain(info), indent=1) + "\n")


_FILES = (
    *(WEIGHTS_FILE, INFO_FILE, TOKENIZER_WEIGHTS, TOKENIZER_INFO),
    *(CLASSIFIER_WEIGHTS, CLASSIFIER_INFO),
)


def find_export(path: Path | str) -> Path:
    """The export folder for a path: the newest export of a run folder, an export folder itself, or
    the folder of one of its files.

    Raises:
        UserError: There is no export.
    """
    path = path_of(str(path))
    if path.name in _FILES:
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
    remedy = "give the folder of a run of a tokenizer recipe, such as tokenizer_pixels_small_data"
    return _read_info(path, "tokenizer", TokenizerInfo, remedy)


def read_classifier_info(path: Path | str) -> ClassifierInfo:
    """The description of an exported classifier; arguments as of :func:`find_export`.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    remedy = "give the folder of a run with objective.name=classification"
    return _read_info(path, "classifier", ClassifierInfo, remedy)


def _read_info(path: Path | str, name: str, kind: type[Info], remedy: str) -> Info:
    folder = find_export(path)
    file = folder / f"{name}.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no {name} (no {file.name})",
            f"{remedy}, or one of its exports/step_… folders",
        )
    values = read_json(file, "export again")
    own = kind.model_fields["format"].default
    if values.get("format") != own:
        raise UserError(f"{file} is not in the format {own}", "export again with this version")
    return validate(kind, values, str(file))
