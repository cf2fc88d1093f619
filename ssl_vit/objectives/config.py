"""The closed set of objectives: a new one adds its config here and its cases to `build.py`."""

from typing import Annotated

from pydantic import Field

from ssl_vit.objectives.beit.config import BeitConfig
from ssl_vit.objectives.classification.config import ClassificationConfig
from ssl_vit.objectives.dino.config import DinoConfig
from ssl_vit.objectives.mae.config import MaeConfig
from ssl_vit.objectives.maskfeat.config import MaskFeatConfig
from ssl_vit.objectives.simmim.config import SimMimConfig
from ssl_vit.objectives.tokenizer.config import TokenizerConfig

ObjectiveConfig = Annotated[
    MaeConfig
    | SimMimConfig
    | MaskFeatConfig
    | BeitConfig
    | TokenizerConfig
    | DinoConfig
    | ClassificationConfig,
    Field(discriminator="name"),
]
