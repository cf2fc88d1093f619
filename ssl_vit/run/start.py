"""Where a run begins that is no continuation: `resume_from`, a trained network.

Of a run or checkpoint everything that was learned is taken over, teacher and heads too, but neither
the optimizer's state nor the place in the schedules; so a last phase on larger crops (Oquab et al.
2023, section 5, "Adapting the resolution") goes on with the heads it has. Of an export there is the
backbone alone.
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

# Of a backbone: they have no part in its weights' shapes, but for positions, which are resized.
_FREE = ("image_size", "drop_path", "initialization")


def find_checkpoint(path: Path | str) -> Path | None:
    """The checkpoint that is meant by a run folder (its newest one) or by itself; None where there
    is none.
    """
    path = path_of(str(path))
    if (path / MANIFEST).is_file():
        return path
    return newest_checkpoint(RunFolder(path).checkpoints)


def check_beginning(config: RunConfig) -> None:
    """Refuse what this run cannot start from; needs no torch.

    Raises:
        UserError: Neither a checkpoint nor an export there, or one of another architecture or
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
                f"resume_from={path} was trained with objective.name={run.objective.name}, this "
                f"run has {config.objective.name}",
                "give one of its exports/step_… folders, to begin with the backbone alone",
            )
    ours = config.backbone
    theirs = theirs.model_copy(update={name: getattr(ours, name) for name in _FREE})
    if changed := differences(ours, theirs):
        field, (mine, other) = next(iter(changed.items()))
        raise UserError(
            f"resume_from={path} has backbone.{field}={other}, this run {mine}",
            f"set backbone.{field}={other}, or begin from another run",
        )


def initial_objective(
    config: RunConfig, folder: RunFolder, processes: Processes, total_steps: int
) -> "Objective":
    """A run's objective before its own checkpoint: fresh, or as `resume_from` says; the same on
    every rank, and all of them call it.

    Args:
        folder: Of the run; once it has checkpoints, the other network is not needed any more.

    Raises:
        UserError: That network does not fit, or is damaged.
    """
    import torch

    from ssl_vit.models.build import build_backbone
    from ssl_vit.objectives.build import build_objective

    torch.manual_seed(config.seed)
    model = build_backbone(config.backbone)
    given = "" if has_begun(folder) else config.resume_from
    checkpoint = find_checkpoint(given) if given else None
    if given and checkpoint is None:
        load_exported(model, given)
    objective = build_objective(config.objective, model, config.data, total_steps)
    if checkpoint is not None:
        load_network(objective, checkpoint, processes)
    return objective


def has_begun(folder: RunFolder) -> bool:
    """Whether the run goes on from a checkpoint of its own."""
    return bool(complete_checkpoints(folder.checkpoints))


def load_exported(model: "Backbone", path: str) -> None:
    """Start a fresh backbone from an export, its positions resized to the new grid.

    Raises:
        UserError: It does not fit, which :func:`check_beginning` could not see.
    """
    from ssl_vit.exports.loading import load_backbone
    from ssl_vit.models.vit import VisionTransformer, load_timm_weights

    assert isinstance(model, VisionTransformer)
    theirs = load_backbone(path)
    try:
        load_timm_weights(model, theirs.state_dict(), theirs.config.grid)
    except ValueError as error:
        raise UserError(
            f"resume_from={path}: {error}", "give the run the backbone config of that export"
        ) from None


def load_network(objective: "Objective", checkpoint: Path, processes: Processes) -> None:
    """Start a fresh objective from a checkpoint of the same kind, positions resized; every rank
    calls it, and reads a part of the files to see whether they are whole.

    Args:
        objective: Whole, on the CPU, before an engine has it.
        checkpoint: Of any ZeRO stage and number of processes.

    Raises:
        UserError: It is damaged or cannot be read, or a tensor has another size; names it.
    """
    import torch

    from ssl_vit.models.vit import VisionTransformer, fit_positions
    from ssl_vit.training.consensus import gather
    from ssl_vit.training.state_shards import BUFFER, WEIGHT, StateReader

    for problem in gather(damage(checkpoint, processes), processes):
        if problem is not None:
            raise UserError(f"resume_from: {problem}", "give another checkpoint, or an export")
    manifest = read_manifest(checkpoint)
    assert not isinstance(manifest, str)
    state = objective.state_dict(keep_vars=True)
    grid = RunFolder(checkpoint.parent.parent).read_config().backbone.grid
    try:
        reader = StateReader([checkpoint / name for name in manifest.files])
        for name, tensor in state.items():
            is_weight = isinstance(tensor, torch.nn.Parameter)
            is_position = name.endswith("pos_embed")
            if is_position and not is_weight:
                continue  # a table that follows from the grid
            stored = reader.read(f"{WEIGHT if is_weight else BUFFER}/{name}")
            if is_position:
                rows = stored.view(1, -1, tensor.shape[-1])
                assert isinstance(objective.backbone, VisionTransformer)
                stored = fit_positions(objective.backbone, rows, grid)
            if stored.numel() != tensor.numel():
                raise UserError(
                    f"resume_from: {name} has {stored.numel():,} elements in {checkpoint}, "
                    f"{tensor.numel():,} in this run",
                    "give this run the objective's settings of that one (its config.yaml)",
                )
            tensor.data.copy_(stored.view_as(tensor))
    except (OSError, KeyError) as error:
        raise UserError(
            f"cannot read checkpoint {checkpoint}: {error}",
            "give this run the objective's settings of that one, or another checkpoint",
        ) from None


def _export_at(path: str) -> Path:
    try:
        return find_export(path)
    except UserError as error:
        raise UserError(
            f"resume_from={path} has neither a checkpoint nor an export", error.remedy
        ) from None
