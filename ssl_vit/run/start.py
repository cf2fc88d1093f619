"""Where a new run starts from: scratch, or the trained network that `resume_from` names.

From a run or checkpoint, everything that was learned is loaded, including teacher and heads, but
neither the optimizer's state nor the position in the schedules; so a last phase on larger crops
(Oquab et al. 2023, section 5, "Adapting the resolution") continues with the trained heads. An
export has the backbone only.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.config import differences
from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import find_export, read_export_info
from ssl_vit.files import path_of
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.given import load_given
from ssl_vit.training.checkpoint import (
    MANIFEST,
    complete_checkpoints,
    damage,
    newest_checkpoint,
    read_manifest,
)

if TYPE_CHECKING:
    from ssl_vit.models.backbone import Backbone
    from ssl_vit.objectives.objective import Objective

# Backbone settings that do not affect the shapes of its weights, except of positions, which are
# resized. A shared table of relative positions may be copied into every block.
_FREE = ("image_size", "drop_path", "drop_path_rule", "initialization")


def find_checkpoint(path: Path | str) -> Path | None:
    """The checkpoint at this path, or the newest one if it is a run folder; None if there is
    none.
    """
    path = path_of(str(path))
    if (path / MANIFEST).is_file():
        return path
    return newest_checkpoint(RunFolder(path).checkpoints)


def check_resume_from(config: RunConfig) -> None:
    """Check that this run can start from `resume_from`; needs no torch.

    Raises:
        UserError: It has neither a checkpoint nor an export, or one of another architecture or
            objective.
    """
    path = config.resume_from
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        theirs = read_export_info(_export_at(path)).backbone
    else:
        run = RunFolder(checkpoint.parent.parent).read_config()
        theirs = run.backbone
        if run.objective.name != config.objective.name:
            raise UserError(
                f"resume_from={path} was trained with objective.name={run.objective.name}, but "
                f"this run has {config.objective.name}",
                "use one of its exports/step_… folders, to start from its backbone only",
            )
        if setting := config.objective.unlike(run.objective):
            raise UserError(
                f"resume_from={path} was trained with another objective.{setting}",
                "use one of its exports/step_… folders, to start from its backbone only",
            )
        _check_same_given(config, run)
    ours = config.backbone
    free = (*_FREE, "relative_tables") if theirs.relative_tables == "shared" else _FREE
    theirs = theirs.model_copy(update={name: getattr(ours, name) for name in free})
    if changed := differences(ours, theirs):
        field, (mine, other) = next(iter(changed.items()))
        raise UserError(
            f"resume_from={path} has backbone.{field}={other}, but this run has {mine}",
            f"set backbone.{field}={other}, or start from another run",
        )


def _check_same_given(config: RunConfig, other: RunConfig) -> None:
    """Heads that predict the codes of one tokenizer are of no use for another's."""
    given = config.objective.given
    if given is None or given.kind != "tokenizer":
        return
    name = f"{given.setting}_info"
    ours, theirs = getattr(config.objective, name), getattr(other.objective, name)
    if ours and theirs and ours.sha256 != theirs.sha256:
        raise UserError(
            f"resume_from={config.resume_from} was trained with another objective.{given.setting}",
            "use one of its exports/step_… folders, to start from its backbone only",
        )


def initial_objective(
    config: RunConfig, folder: RunFolder, processes: Processes, total_steps: int
) -> "Objective":
    """A run's objective before its own checkpoint is loaded: newly initialized, or from
    `resume_from`; the same on every rank, and all of them call it.

    Args:
        folder: The run folder; once it has checkpoints, `resume_from` is no longer needed.

    Raises:
        UserError: The network of `resume_from` does not fit, or is damaged.
    """
    import torch

    from ssl_vit.models.build import build_backbone
    from ssl_vit.objectives.build import build_objective

    torch.manual_seed(config.seed)
    model = build_backbone(config.backbone)
    given = "" if has_checkpoints(folder) else config.resume_from
    checkpoint = find_checkpoint(given) if given else None
    if given and checkpoint is None:
        load_exported(model, given)
    model.freeze_first(config.optimizer.freeze_units)
    objective = build_objective(config.objective, model, config.data, total_steps)
    load_given(objective, config)
    if checkpoint is not None:
        load_network(objective, checkpoint, processes)
    return objective


def has_checkpoints(folder: RunFolder) -> bool:
    """Whether the run has checkpoints of its own to resume from."""
    return bool(complete_checkpoints(folder.checkpoints))


def load_exported(model: "Backbone", path: str) -> None:
    """Load an export into a new backbone, its positions resized to the new grid.

    Raises:
        UserError: It does not fit in a way that :func:`check_resume_from` could not detect.
    """
    from ssl_vit.exports.loading import load_backbone
    from ssl_vit.models.timm_weights import load_timm_weights
    from ssl_vit.models.vit import VisionTransformer

    assert isinstance(model, VisionTransformer)
    theirs = load_backbone(path)
    try:
        load_timm_weights(model, theirs.state_dict(), theirs.config.grid)
    except ValueError as error:
        raise UserError(
            f"resume_from={path}: {error}", "use the backbone config of that export for this run"
        ) from None


def load_network(objective: "Objective", checkpoint: Path, processes: Processes) -> None:
    """Load a checkpoint of the same kind into a new objective, positions resized; every rank calls
    it and verifies a part of the files.

    Args:
        objective: The whole objective on the CPU, before an engine takes it over.
        checkpoint: Written at any ZeRO stage by any number of processes.

    Raises:
        UserError: The checkpoint is damaged or cannot be read, or a tensor, which is named, has
            another size.
    """
    import torch

    from ssl_vit.models.timm_names import source_of
    from ssl_vit.models.timm_weights import POSITIONS, fit_positions
    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.training.consensus import gather
    from ssl_vit.training.state_shards import BUFFER, WEIGHT, StateReader

    for problem in gather(damage(checkpoint, processes), processes):
        if problem is not None:
            raise UserError(f"resume_from: {problem}", "use another checkpoint, or an export")
    manifest = read_manifest(checkpoint)
    assert not isinstance(manifest, str)
    state = objective.state_dict(keep_vars=True)
    theirs = RunFolder(checkpoint.parent.parent).read_config().backbone
    try:
        reader = StateReader([checkpoint / name for name in manifest.files])
        for name, tensor in state.items():
            is_weight = isinstance(tensor, torch.nn.Parameter)
            is_position = name.endswith(POSITIONS)
            if is_position and not is_weight:
                continue  # a table that follows from the grid
            source = source_of(name, theirs)
            stored = reader.read(f"{WEIGHT if is_weight else BUFFER}/{source}")
            if is_position:
                rows = stored.view(*tensor.shape[:-2], -1, tensor.shape[-1])
                assert isinstance(objective.backbone, VisionTransformer)
                stored = fit_positions(objective.backbone, name, rows, theirs.grid)
            if stored.numel() != tensor.numel():
                raise UserError(
                    f"resume_from: {name} has {stored.numel():,} elements in {checkpoint}, but "
                    f"{tensor.numel():,} in this run",
                    "use the objective settings of that run (see its config.yaml)",
                )
            tensor.data.copy_(stored.view_as(tensor))
    except (OSError, KeyError) as error:
        raise UserError(
            f"cannot read checkpoint {checkpoint}: {error}",
            "use the objective settings of that run, or another checkpoint",
        ) from None


def _export_at(path: str) -> Path:
    try:
        return find_export(path)
    except UserError as error:
        raise UserError(
            f"resume_from={path} has neither a checkpoint nor an export", error.remedy
        ) from None
