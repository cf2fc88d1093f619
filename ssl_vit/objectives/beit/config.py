"""Configuration of BEiT (Bao et al. 2021, arXiv 2106.08254) and BEiT v2 (Peng et al. 2022, arXiv
2208.06366).
"""

from typing import Any, Literal

from pydantic import Field

from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.given import Given, GivenNetwork
from ssl_vit.objectives.method import Symptom
from ssl_vit.objectives.one_crop.config import BlockMaskConfig, paired_crops

_USUAL_CODES = 8192


class BeitConfig(BlockMaskConfig):
    """BEiT (Bao et al. 2021, arXiv 2106.08254): predict the visual tokens of hidden patches."""

    name: Literal["beit"] = "beit"
    """Which objective this section configures."""

    tokenizer: str = ""
    """The tokenizer: the folder of a run that trained one, one of its exports, a
    `tokenizer.safetensors`, or DALL-E's encoder as a safetensors file.
    """

    tokenizer_info: GivenNetwork | None = None
    """Description of the tokenizer, filled in by the run; a run never continues with another."""

    mask_ratio: float = Field(default=75 / 196, gt=0, lt=1)
    """Share of the patches that is hidden, in blocks; rounded, and the count is exact (75 of 196 in
    the released configuration).
    """

    min_crop_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest crop as a share of the image's area (0.2 in BEiT v2)."""

    color_jitter: float = Field(default=0.4, ge=0, le=1)
    """Brightness, contrast and saturation of both networks' crop change by up to this share."""

    aggregate_after: int = Field(default=0, ge=0, le=1_000)
    """Patch aggregation of BEiT v2: the class token of the last block also predicts,
    with the patches after this block. 0: none.
    """

    aggregate_depth: int = Field(default=2, ge=1, le=100)
    """Number of transformer blocks of the patch aggregation."""

    @property
    def given(self) -> Given:
        """See :class:`MethodConfig`: the tokenizer."""
        return Given(
            "tokenizer",
            "tokenizer",
            self.tokenizer,
            "train one on your images:  ssl-vit pretrain tokenizer_pixels_small_data --run "
            "TOKENIZER data.shards=SHARDS  then repeat this command with  "
            "objective.tokenizer=TOKENIZER",
        )

    @property
    def num_codes(self) -> int:
        """See :class:`MethodConfig`."""
        codes = self.tokenizer_info and self.tokenizer_info.codes
        return codes.num if codes else _USUAL_CODES

    def num_hidden(self, backbone: BackboneConfig) -> int:
        """M, the number of hidden patches; at least one is hidden and one is visible."""
        num_patches = backbone.num_patches
        return min(max(round(num_patches * self.mask_ratio), 1), num_patches - 1)

    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """The training crop, and the same at the tokenizer's size if its patches are others."""
        info = self.tokenizer_info
        return paired_crops(backbone, info and info.backbone)

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; patches are aggregated after one of the blocks."""
        super().check(backbone)
        depth = getattr(backbone, "depth", 0)
        if self.aggregate_after >= max(depth, 1):
            raise ValueError(
                f"objective.aggregate_after={self.aggregate_after} is not below backbone.depth="
                f"{depth}; choose a smaller one (9 of 12 and 21 of 24 in the paper), or 0 for none"
            )

    def cures(self, symptom: Symptom) -> str:
        """See :class:`MethodConfig`."""
        if symptom == "few codes":
            return "another objective.tokenizer, trained longer or on objective.target=features"
        return super().cures(symptom)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`; the smoke twin has two blocks and 16 patches."""
        aggregated = {"aggregate_after": 1} if self.aggregate_after else {}
        return {
            "min_block_patches": min(self.min_block_patches, 2),
            "aggregate_depth": 1,
            **aggregated,
        }
