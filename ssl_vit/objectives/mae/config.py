"""Configuration of the masked autoencoder (He et al. 2021, arXiv 2111.06377)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ssl_vit.models.config import BackboneConfig, Hides
from ssl_vit.objectives.one_crop.config import OneCropConfig, num_hidden_patches


class MaeConfig(OneCropConfig):
    """Masked autoencoder, MAE (He et al. 2021, arXiv 2111.06377)."""

    name: Literal["mae"] = "mae"
    """Which objective this section configures."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that are hidden; the count is exact (section 3, "Masking")."""

    decoder_width: int = Field(default=512, ge=16, le=65_536)
    """Width of the decoder's tokens (table 1b)."""

    decoder_depth: int = Field(default=8, ge=1, le=1_000)
    """Number of transformer blocks in the decoder (table 1a)."""

    decoder_heads: int = Field(default=16, ge=1, le=65_536)
    """Number of attention heads in the decoder."""

    normalize_targets: bool = True
    """Whether the target of a patch is normalized by its own mean and variance (table 1d)."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "MaeConfig":
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(
                f"objective.decoder_width={self.decoder_width} must be a multiple of 4 and of "
                f"objective.decoder_heads={self.decoder_heads}; the paper's are 512 and 16"
            )
        return self

    @property
    def needs(self) -> Hides:
        """The encoder leaves hidden patches out."""
        return "drop"

    def num_hidden(self, backbone: BackboneConfig) -> int:
        """See :func:`num_hidden_patches`."""
        return num_hidden_patches(backbone.num_patches, self.mask_ratio)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`."""
        return {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
