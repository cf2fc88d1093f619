"""From a config to an objective and its views. A new objective adds one case to each function."""

from typing import assert_never

from ssl_vit.data.config import DataConfig
from ssl_vit.data.dataset import Views
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import DinoConfig, MaeConfig, ObjectiveConfig
from ssl_vit.objectives.dino.objective import Dino
from ssl_vit.objectives.dino.views import DinoViews
from ssl_vit.objectives.mae.objective import Mae, MaeViews
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.pixels import PixelScale


def build_objective(
    config: ObjectiveConfig, model: VisionTransformer, data: DataConfig, total_steps: int
) -> Objective:
    """The model and its loss, what is not in ``model`` initialized from torch's current seed.

    Args:
        config: Of the objective.
        model: The backbone, as it begins.
        data: Says how pixels are scaled.
        total_steps: Updates of the run.
    """
    pixel_scale = PixelScale(data.pixel_mean, data.pixel_std)
    match config:
        case MaeConfig():
            return Mae(config, model, pixel_scale)
        case DinoConfig():
            return Dino(config, model, pixel_scale, total_steps)
    assert_never(config)


def build_views(config: ObjectiveConfig, backbone: BackboneConfig) -> Views:
    """What the objective sees of an image, for the data workers."""
    match config:
        case MaeConfig():
            return MaeViews(config, backbone)
        case DinoConfig():
            return DinoViews(config, backbone)
    assert_never(config)
