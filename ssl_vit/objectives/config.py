"""The closed set of objectives: a new one adds its config here and its cases to `build.py`."""

from typing import Annotated

from pydantic import Field

from ssl_vit.objectives.dino.config import DinoConfig
from ssl_vit.objectives.mae.config import MaeConfig
from ssl_vit.objectives.simmim.config import SimMimConfig

ObjectiveConfig = Annotated[
    MaeConfig | SimMimConfig | DinoConfig,
    Field(discriminator="name"),
]
