"""Networks that an objective reads from a file before it trains: a teacher, or a tokenizer.

What the objective needs to know of one (sizes, normalization, checksum) is filled into the run's
config at its first start; the path is not needed to plan a run. No torch here.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ssl_vit.config import Config
from ssl_vit.models.config import BackboneConfig, Hides, VitConfig

Positive = Annotated[float, Field(gt=0)]


class Codes(Config):
    """A codebook that turns the features of a patch into one of its entries."""

    num: int = Field(ge=2, le=65_536)
    """K, the number of codes."""
    dim: int = Field(ge=1, le=65_536)
    """C, the dimension of a code."""
    is_projected: bool
    """Whether features are projected to C dimensions first; else they are compared as they are."""


class DalleConfig(BackboneConfig):
    """The convolutional encoder of DALL-E's discrete VAE (Ramesh et al. 2021, arXiv 2102.12092),
    BEiT's first tokenizer. It is only ever given.
    """

    name: Literal["dalle"] = "dalle"
    """Which network this is."""

    width: int = Field(default=8192, ge=2, le=65_536)
    """Number of codes, whose logits it computes."""

    hidden: int = Field(default=256, ge=4, le=4_096)
    """Channels after the first convolution; 2, 4 and 8 times as many later."""

    @property
    def stride(self) -> int:
        """Three poolings by two."""
        return 8

    @property
    def hides(self) -> Hides:
        """Nothing is hidden from a tokenizer."""
        return "no"

    def shrunk(self) -> dict[str, Any]:
        """See :class:`BackboneConfig`; a given network keeps its size."""
        return {}


class GivenNetwork(Config):
    """Description of a network that was read from a file."""

    sha256: str
    """Checksum of its weights."""
    backbone: Annotated[VitConfig | DalleConfig, Field(discriminator="name")]
    """Configuration that builds its backbone."""
    pixel_mean: tuple[float, float, float]
    """Per-channel mean to subtract from pixels in [0, 1]."""
    pixel_std: tuple[Positive, Positive, Positive]
    """Per-channel standard deviation to divide by."""
    codes: Codes | None = None
    """Its codebook, if it is a tokenizer."""


class Given(NamedTuple):
    """Which file an objective reads."""

    setting: str
    """Name of the setting with the path; its description is in `SETTING_info`."""
    kind: Literal["backbone", "tokenizer"]
    """`backbone` (any export) or `tokenizer`."""
    path: str
    """A run folder, an export folder, or a file in one; empty if it is missing."""
    remedy: str
    """What to do if the path is missing."""
