"""Configuration of SimMIM (Xie et al. 2021, arXiv 2111.09886)."""

import math
from typing import Any, Literal

from pydantic import Field

from ssl_vit.models.config import BackboneConfig, Hides
from ssl_vit.objectives.one_crop.config import OneCropConfig


class SimMimConfig(OneCropConfig):
    """SimMIM (Xie et al. 2021, arXiv 2111.09886): hide large squares, predict their pixels."""

    name: Literal["simmim"] = "simmim"
    """Which objective this section configures."""

    mask_unit: int = Field(default=32, ge=1, le=16_384)
    """Pixels per side of the squares that are hidden (table 1); a multiple of the patch size."""

    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """Share of the squares that is hidden, rounded up; the count is exact (table 1)."""

    min_crop_area: float = Field(default=0.67, gt=0, le=1)
    """Smallest crop as a share of the image's area (section 4.1)."""

    @property
    def needs(self) -> Hides:
        """A mask token replaces hidden patches."""
        return "fill"

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; squares must be whole patches, and crops whole squares."""
        super().check(backbone)
        unit, stride = self.mask_unit, backbone.stride
        if unit % stride or any(side % unit for side in backbone.height_width):
            raise ValueError(
                f"objective.mask_unit={unit} must be a multiple of backbone.patch_size={stride} "
                f"and divide backbone.image_size={backbone.image_size}; {stride} does"
            )
        if self.num_hidden(backbone) >= backbone.num_patches:
            raise ValueError(
                f"objective.mask_unit={unit} and objective.mask_ratio={self.mask_ratio:g} leave "
                "nothing visible; lower one of them"
            )

    def units(self, backbone: BackboneConfig) -> tuple[int, int]:
        """Number of squares (down, across) in a crop."""
        height, width = backbone.height_width
        return height // self.mask_unit, width // self.mask_unit

    def num_hidden(self, backbone: BackboneConfig) -> int:
        """M, the number of patches in the hidden squares."""
        down, across = self.units(backbone)
        return math.ceil(self.mask_ratio * down * across) * (self.mask_unit // backbone.stride) ** 2

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`; the smoke twin's crop is four patches wide."""
        return {"mask_unit": 2 * backbone.stride}
