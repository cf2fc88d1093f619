"""Builds a backbone from a config. A new backbone adds its case."""

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.config import BackboneConfig, VitConfig
from ssl_vit.models.vit import VisionTransformer


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of a config, initialized from torch's current seed."""
    match config:
        case VitConfig():
            return VisionTransformer(config)
    raise AssertionError(f"{type(config).__name__} has no case in models/build.py")
