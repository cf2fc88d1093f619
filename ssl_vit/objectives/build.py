"""Builds an objective and its views from a config: the only place that distinguishes the methods.
A new objective adds one case to each function.
"""

from typing import assert_never

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Views
from ssl_vit.models.backbone import Backbone, SparseBackbone, TokenBackbone
from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.beit.objective import Beit
from ssl_vit.objectives.beit.views import BeitViews
from ssl_vit.objectives.classification.objective import Classification
from ssl_vit.objectives.classification.views import LabeledViews
from ssl_vit.objectives.config import (
    BeitConfig,
    ClassificationConfig,
    DinoConfig,
    MaeConfig,
    MaskFeatConfig,
    ObjectiveConfig,
    SimMimConfig,
    TokenizerConfig,
)
from ssl_vit.objectives.dino.objective import Dino
from ssl_vit.objectives.dino.views import DinoViews
from ssl_vit.objectives.mae.objective import Mae
from ssl_vit.objectives.maskfeat.objective import MaskFeat, MaskFeatViews
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.pairs import PairedViews
from ssl_vit.objectives.one_crop.views import RandomPatchViews
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.simmim.objective import SimMim, SimMimViews
from ssl_vit.objectives.tokenizer.objective import Tokenizer


def build_objective(
    config: ObjectiveConfig, backbone: Backbone, data: DataConfig, total_steps: int
) -> Objective:
    """The model and its loss; all weights outside ``backbone`` are initialized from torch's current
    seed.

    Args:
        config: Settings of the objective.
        backbone: The initialized backbone.
        data: Provides the mean and standard deviation of pixels.
        total_steps: Optimizer steps in the run.

    Raises:
        ValueError: The objective cannot train this backbone; "what is wrong; what to do".
    """
    config.check(backbone.config)
    pixel_scale = PixelScale(data.pixel_mean, data.pixel_std)
    match config:
        case MaeConfig():
            assert isinstance(backbone, SparseBackbone)
            return Mae(config, backbone, pixel_scale)
        case SimMimConfig():
            assert isinstance(backbone, TokenBackbone)
            return SimMim(config, backbone, pixel_scale)
        case MaskFeatConfig():
            assert isinstance(backbone, TokenBackbone)
            return MaskFeat(config, backbone, pixel_scale)
        case BeitConfig():
            assert isinstance(backbone, TokenBackbone)
            return Beit(config, backbone, pixel_scale)
        case TokenizerConfig():
            return Tokenizer(config, backbone, pixel_scale, total_steps)
        case DinoConfig():
            return Dino(config, backbone, pixel_scale, total_steps)
        case ClassificationConfig():
            return Classification(config, backbone, pixel_scale)
    assert_never(config)


def build_views(config: ObjectiveConfig, backbone: BackboneConfig) -> Views:
    """What the objective sees of an image, for the data workers."""
    match config:
        case MaeConfig():
            return RandomPatchViews(config, backbone)
        case SimMimConfig():
            return SimMimViews(config, backbone)
        case MaskFeatConfig():
            return MaskFeatViews(config, backbone)
        case BeitConfig():
            return BeitViews(config, backbone)
        case TokenizerConfig():
            return PairedViews(config, backbone)
        case DinoConfig():
            return DinoViews(config, backbone)
        case ClassificationConfig():
            return LabeledViews(config, backbone)
    assert_never(config)
