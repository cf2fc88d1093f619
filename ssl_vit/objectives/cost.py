"""How many pixels an objective sees of an image; no torch."""

from typing import assert_never

from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.config import DinoConfig, MaeConfig, ObjectiveConfig


def view_pixels(objective: ObjectiveConfig, backbone: BackboneConfig) -> int:
    """Places in all views of an image together, each of three colors."""
    match objective:
        case MaeConfig():
            return backbone.image_size**2
        case DinoConfig():
            local = objective.local_crops * objective.local_size**2
            return 2 * backbone.image_size**2 + local
    assert_never(objective)
