"""Networks that an objective reads from a file before it trains: a teacher, or a tokenizer.

What the objective needs to know of one (sizes, normalization, checksum) is filled into the run's
config at its first start; the path is not needed to plan a run. No torch here.
"""

from typing import NamedTuple

from ssl_vit.config import Config
from ssl_vit.models.config import VitConfig


class Codes(Config):
    """A codebook that turns the features of a patch into one of its entries."""

    num: int
    """K, the number of codes."""
    dim: int
    """C, the dimension of a code."""
    is_projected: bool
    """Whether features are projected to C dimensions first; else they are compared as they are."""


class GivenNetwork(Config):
    """Description of a network that was read from a file."""

    sha256: str
    """Checksum of its weights."""
    backbone: VitConfig
    """Configuration that builds its backbone."""
    pixel_mean: tuple[float, float, float]
    """Per-channel mean to subtract from pixels in [0, 1]."""
    pixel_std: tuple[float, float, float]
    """Per-channel standard deviation to divide by."""
    codes: Codes | None = None
    """Its codebook, if it is a tokenizer."""


class Given(NamedTuple):
    """Which file an objective reads."""

    setting: str
    """Name of the setting with the path; its description is in `SETTING_info`."""
    kind: str
    """`backbone` (any export) or `tokenizer`."""
    path: str
    """A run folder, an export folder, or a file in one; empty if it is missing."""
    remedy: str
    """What to do if the path is missing."""
