"""Configuration of MaskFeat (Wei et al. 2021, arXiv 2112.09133)."""

from typing import Any, Literal

from pydantic import Field

from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.one_crop.config import BlockMaskConfig


class MaskFeatConfig(BlockMaskConfig):
    """MaskFeat (Wei et al. 2021, arXiv 2112.09133): hide blocks of patches, predict their HOG."""

    name: Literal["maskfeat"] = "maskfeat"
    """Which objective this section configures."""

    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Share of the patches that is hidden, rounded down; the count is exact (78 of 196)."""

    min_block_patches: int = Field(default=15, ge=1, le=16_384)
    """Patches in the smallest block; where fewer are left, single patches are hidden."""

    min_crop_area: float = Field(default=0.5, gt=0, le=1)
    """Smallest crop as a share of the image's area."""

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; a patch is two cells wide."""
        super().check(backbone)
        if backbone.stride % 2:
            raise ValueError(
                f"backbone.patch_size={backbone.stride} is odd, and objective.name={self.name} "
                "describes a patch by cells of half its side; choose an even one"
            )

    def num_hidden(self, backbone: BackboneConfig) -> int:
        """M; at least one patch is hidden and one is visible."""
        # 100 × 0.29 is 28.999…96 in binary: without the small push, 28 patches would be hidden.
        count = int(self.mask_ratio * backbone.num_patches + 1e-9)
        return min(max(count, 1), backbone.num_patches - 1)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`; the smoke twin's crop is four patches wide."""
        return {"min_block_patches": 1}
