"""From a config to an objective and its views. A new objective adds one case to each function."""

from typing import assert_never

from ssl_vit.data.config import DataConfig
from ssl_vit.data.dataset import Views
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import MaeConfig, ObjectiveConfig
from ssl_vit.objectives.mae import Mae, MaeViews
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.pixels import PixelScale


def build_objective(
    config: ObjectiveConfig, backbone: BackboneConfig, data: DataConfig
) -> Objective:
    """The model and its loss, freshly initialised from torch's current seed."""
    model = VisionTransformer(backbone)
    pixel_scale = PixelScale(data.pixel_mean, data.pixel_std)
    match config:
        case MaeConfig():
            return Mae(config, model, pixel_scale)
    assert_never(config)


def build_views(config: ObjectiveConfig, backbone: BackboneConfig) -> Views:
    """What the objective sees of an image, for the data workers."""
    match config:
        case MaeConfig():
            return MaeViews(config, backbone)
    assert_never(config)
