"""What a training step of each objective costs, from its config; no torch."""

from dataclasses import replace
from itertools import pairwise
from typing import assert_never

from ssl_vit.models.config import VitConfig
from ssl_vit.models.cost import FLOAT32, Arithmetic, Cost, backbone_cost, blocks_cost, linear, norm
from ssl_vit.objectives.config import (
    DinoConfig,
    MaeConfig,
    ObjectiveConfig,
    SimMimConfig,
)


def objective_cost(objective: ObjectiveConfig, backbone: VitConfig, arithmetic: Arithmetic) -> Cost:
    """Of one image: backbone, what the objective adds, and its loss."""
    match objective:
        case MaeConfig():
            return _mae(objective, backbone, arithmetic)
        case SimMimConfig():
            return _simmim(objective, backbone, arithmetic)
        case DinoConfig():
            return _dino(objective, backbone, arithmetic)
    assert_never(objective)


def _mae(objective: MaeConfig, backbone: VitConfig, arithmetic: Arithmetic) -> Cost:
    patches, width = backbone.num_patches, objective.decoder_width
    hidden = objective.num_hidden(backbone)
    pixels = 3 * backbone.patch_size**2
    # Prediction and target; and what visible and hidden patches are gathered from.
    kept = (2 * hidden * pixels + patches * (backbone.width + width)) * FLOAT32
    # The images themselves; in float32 it is they that the stem keeps.
    images = 0 if arithmetic.precision == "float32" else patches * pixels * FLOAT32
    return (
        backbone_cost(backbone, patches - hidden, arithmetic)
        + linear(backbone.width, width, 1 + patches - hidden, arithmetic)
        + Cost(trained=width)  # the mask token
        + blocks_cost(
            objective.decoder_depth, width, objective.decoder_heads, 1 + patches, arithmetic
        )
        + norm(width, hidden)
        + linear(width, pixels, hidden, arithmetic)
        + Cost(kept_bytes=kept, checkpointed_bytes=kept, held_bytes=images)
    )


def _simmim(objective: SimMimConfig, backbone: VitConfig, arithmetic: Arithmetic) -> Cost:
    hidden, pixels = objective.num_hidden(backbone), 3 * backbone.stride**2
    kept = (2 * hidden * pixels + hidden * backbone.width) * FLOAT32
    images = 0 if arithmetic.precision == "float32" else backbone.num_patches * pixels * FLOAT32
    return (
        backbone_cost(backbone, backbone.num_patches, arithmetic)
        + Cost(trained=backbone.width)  # the mask token
        + linear(backbone.width, pixels, hidden, arithmetic)
        + Cost(kept_bytes=kept, checkpointed_bytes=kept, held_bytes=images)
    )


def _dino(objective: DinoConfig, backbone: VitConfig, arithmetic: Arithmetic) -> Cost:
    """Two global and some local views of an image; the teacher sees the global ones."""
    local = backbone.model_copy(update={"image_size": objective.local_size})
    num_views = 2 + objective.local_crops
    one_global = backbone_cost(backbone, backbone.num_patches, arithmetic)
    one_local = backbone_cost(local, local.num_patches, arithmetic)
    # Dropping paths is for those who learn.
    whole = backbone_cost(
        backbone.model_copy(update={"drop_path": 0.0}), backbone.num_patches, arithmetic
    )
    # As many patches as are masked on average.
    share = (objective.min_mask_ratio + objective.max_mask_ratio) / 2 * objective.mask_probability
    masked = 2 * share * backbone.num_patches if objective.ibot_weight else 0.0
    own_head = bool(objective.ibot_prototypes and objective.ibot_weight)
    sizes = (objective.prototypes, objective.bottleneck)
    heads = _head(objective, backbone.width, sizes, num_views, arithmetic)
    asked = _head(objective, backbone.width, sizes, 2, arithmetic)
    patch_sizes = (objective.ibot_prototypes, objective.ibot_bottleneck) if own_head else sizes
    patches = _head(objective, backbone.width, patch_sizes, masked, arithmetic)
    own_weights = patches.cast_weights if own_head else 0
    trained = one_global.trained + heads.trained + (patches.trained if own_head else 0)
    student = _times(2, one_global) + _times(objective.local_crops, one_local) + heads + patches
    # A forward pass alone is a third of what `flops` stands for.
    teacher = (2 * whole.flops + asked.flops + patches.flops) / 3
    targets = (2 * sizes[0] + masked * patch_sizes[0]) * FLOAT32
    return replace(
        student,
        trained=trained + (backbone.width if objective.ibot_weight else 0),
        frozen=trained,
        flops=student.flops + teacher,
        # The same weights in every pass; autocast keeps no copy of those that are not trained.
        cast_weights=one_global.cast_weights + heads.cast_weights + own_weights,
        held_bytes=3 * objective.crop_pixels(backbone) * FLOAT32 + targets,
    )


def _times(count: int, cost: Cost) -> Cost:
    """The same weights over several views."""
    return replace(
        cost,
        flops=count * cost.flops,
        kept_bytes=count * cost.kept_bytes,
        checkpointed_bytes=count * cost.checkpointed_bytes,
        recomputed_bytes=count * cost.recomputed_bytes,
        working_bytes=count * cost.working_bytes,
    )


def _head(
    objective: DinoConfig,
    width: int,
    sizes: tuple[int, int],
    rows: float,
    arithmetic: Arithmetic,
) -> Cost:
    """A projection head of so many (prototypes, bottleneck) over ``rows`` tokens of an image."""
    prototypes, bottleneck = sizes
    between = [objective.head_hidden] * (objective.head_layers - 1)
    widths = [width, *between, bottleneck]
    cost = Cost()
    for before, after in pairwise(widths):
        cost += linear(before, after, rows, arithmetic)
    # GELU's inputs, the bottleneck before and after it is normalized, logits and their softmax.
    kept = rows * (sum(between) + 2 * bottleneck) * arithmetic.bytes
    kept += rows * prototypes * (arithmetic.bytes + FLOAT32)
    last = Cost(
        trained=prototypes * bottleneck,
        flops=2.0 * rows * prototypes * bottleneck,
        cast_weights=prototypes * bottleneck,
    )
    return cost + last + Cost(kept_bytes=kept, checkpointed_bytes=kept)
