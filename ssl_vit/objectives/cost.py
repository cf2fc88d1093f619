"""What a training step of each objective costs, from its config; no torch."""

from typing import assert_never

from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.cost import FLOAT32, Arithmetic, Cost, backbone_cost, blocks_cost, linear, norm
from ssl_vit.objectives.config import MaeConfig, ObjectiveConfig, num_hidden_patches


def objective_cost(
    objective: ObjectiveConfig, backbone: BackboneConfig, arithmetic: Arithmetic
) -> Cost:
    """Of one image: backbone, what the objective adds, and its loss."""
    match objective:
        case MaeConfig():
            return _mae(objective, backbone, arithmetic)
    assert_never(objective)


def _mae(objective: MaeConfig, backbone: BackboneConfig, arithmetic: Arithmetic) -> Cost:
    patches, width = backbone.num_patches, objective.decoder_width
    hidden = num_hidden_patches(patches, objective.mask_ratio)
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
