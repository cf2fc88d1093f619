"""What can be said about each objective. Apart from their code so that reading a config loads no
torch.
"""

from typing import Literal

from pydantic import Field, model_validator

from ssl_vit.config import Config


class MaeConfig(Config):
    """Masked autoencoder (He et al. 2021, arXiv 2111.06377)."""

    name: Literal["mae"] = "mae"
    """Which objective this is."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is hidden; the count is exact (section 3, "Masking")."""

    decoder_width: int = Field(default=512, ge=16)
    """Features a token in the decoder (table 1b)."""

    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder (table 1a)."""

    decoder_heads: int = Field(default=16, ge=1)
    """Attention heads of the decoder."""

    normalize_targets: bool = True
    """Predict each patch normalised by its own mean and variance (table 1d)."""

    min_crop_area: float = Field(default=0.2, gt=0, le=1)
    """Smallest crop as a share of the image's area; RandomResizedCrop (0.2, 1), appendix A.1."""

    max_crop_area: float = Field(default=1.0, gt=0, le=1)
    """Largest crop as a share of the image's area."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""

    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip; for images without an up (microscopy, satellites), 0.5."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "MaeConfig":
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(
                f"objective.decoder_width={self.decoder_width} must be a multiple of 4 and of "
                f"objective.decoder_heads={self.decoder_heads}; the paper's are 512 and 16"
            )
        if self.min_crop_area > self.max_crop_area:
            raise ValueError(
                f"objective.min_crop_area={self.min_crop_area} is larger than "
                f"objective.max_crop_area={self.max_crop_area}; swap them"
            )
        return self


def num_hidden_patches(num_patches: int, mask_ratio: float) -> int:
    """M; at least one patch is hidden and one is seen. As in the paper's code, what stays is
    rounded down.
    """
    # 100 × (1 − 0.8) is 19.999…96 in binary: without the small push, 81 patches would be hidden.
    seen = int(num_patches * (1 - mask_ratio) + 1e-9)
    return min(max(num_patches - seen, 1), num_patches - 1)


# A closed set: a new objective adds its config here and its case to `objectives/build.py`.
ObjectiveConfig = MaeConfig
