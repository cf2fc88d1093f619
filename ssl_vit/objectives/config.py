"""Configuration of each objective. Separate from their code so that reading a config loads no
torch.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ssl_vit.config import Config


class MaeConfig(Config):
    """Masked autoencoder (He et al. 2021, arXiv 2111.06377)."""

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

    min_crop_area: float = Field(default=0.2, gt=0, le=1)
    """Smallest crop area as a share of the image; RandomResizedCrop (0.2, 1) in appendix A.1."""

    max_crop_area: float = Field(default=1.0, gt=0, le=1)
    """Largest crop area as a share of the image."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""

    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip; 0.5 suits images without a fixed orientation (microscopy,
    satellites).
    """

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
    """M; at least one patch is hidden and one is visible. As in the paper's code, the number of
    visible patches is rounded down.
    """
    # 100 × (1 − 0.8) is 19.999…96 in binary: without the small push, 81 patches would be hidden.
    seen = int(num_patches * (1 - mask_ratio) + 1e-9)
    return min(max(num_patches - seen, 1), num_patches - 1)


class DinoConfig(Config):
    """Self-distillation: DINO (Caron et al. 2021, arXiv 2104.14294), iBOT (Zhou et al. 2021, arXiv
    2111.07832) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193), chosen by their loss weights.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "stem_rate": "patch_embed_lr_scale",
        "first_teacher_temperature": "warmup_teacher_temperature",
        "grey": "grayscale",
    }

    name: Literal["dino"] = "dino"
    """Which objective this section configures."""

    dino_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the DINO loss: cross-entropy between the class tokens of different views."""

    ibot_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the iBOT loss: cross-entropy on the masked patches. 0 turns masking off (DINO)."""

    koleo_weight: float = Field(default=0.1, ge=0, le=1e6)
    """Weight of the KoLeo regularizer on the class tokens of the global views (Oquab et al.,
    section 4). Nearest neighbors are searched within a micro-batch, so its size affects the result.
    """

    centering: Literal["sinkhorn", "average", "none"] = "sinkhorn"
    """How teacher outputs are centered: Sinkhorn-Knopp over one micro-batch of all ranks (so its
    size affects the result), a moving average over whole updates, or not at all, which collapses.
    """

    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the moving average when `centering` is `average`."""

    student_temperature: float = Field(default=0.1, ge=1e-4, le=100)
    """Temperature of the student's softmax."""

    teacher_temperature: float = Field(default=0.07, ge=1e-4, le=100)
    """Temperature of the teacher's softmax after the warm-up."""

    warmup_teacher_temperature: float = Field(default=0.04, ge=1e-4, le=100)
    """Temperature of the teacher's softmax at the start of the warm-up."""

    temperature_warmup: float = Field(default=0.3, ge=0, le=1)
    """Share of the run over which the teacher's temperature rises (30 of 100 epochs)."""

    momentum: float = Field(default=0.992, ge=0, le=1)
    """Momentum of the EMA teacher at the start; it rises along a cosine."""

    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """Momentum of the EMA teacher at the end."""

    prototypes: int = Field(default=65536, ge=2, le=2**24)
    """Number of prototypes of the class token's head."""

    bottleneck: int = Field(default=256, ge=1, le=65_536)
    """Width of that head's bottleneck, the layer before the prototypes."""

    ibot_prototypes: int = Field(default=0, ge=0, le=2**24)
    """Number of prototypes of a separate head for patches; 0: patches share the class token's head.
    """

    ibot_bottleneck: int = Field(default=256, ge=1, le=65_536)
    """Width of the bottleneck of the separate patch head, if there is one."""

    head_hidden: int = Field(default=2048, ge=1, le=2**20)
    """Width of the hidden layers of all heads."""

    head_layers: int = Field(default=3, ge=1, le=100)
    """Number of linear layers in a head before its prototypes."""

    freeze_prototypes: float = Field(default=0.01, ge=0, lt=1)
    """Share of the run during which the prototypes are not trained (1 of 100 epochs)."""

    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Layer-wise learning rate decay: a block's rate divided by that of the block above it."""

    patch_embed_lr_scale: float = Field(default=0.2, gt=0, le=1)
    """Factor on the learning rate of the patch embedding, applied besides the layer-wise decay."""

    local_crops: int = Field(default=8, ge=0, le=256)
    """Number of local views per image, besides the two global views of `backbone.image_size`."""

    local_size: int = Field(default=96, ge=5, le=16_384)
    """Side of a local view in pixels; a multiple of the patch size."""

    min_local_area: float = Field(default=0.05, gt=0, le=1)
    """Smallest local view as a share of the image's area."""

    min_global_area: float = Field(default=0.32, gt=0, le=1)
    """Smallest global view, and largest local view, as a share of the image's area."""

    mask_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a global view has masked patches."""

    min_mask_ratio: float = Field(default=0.1, ge=0, le=1)
    """Smallest share of masked patches in a view that has any."""

    max_mask_ratio: float = Field(default=0.5, ge=0, le=1)
    """Largest share of masked patches; each view's count is drawn between the two and is exact."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""

    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip; 0.5 suits images without a fixed orientation (microscopy,
    satellites).
    """

    jitter: float = Field(default=0.8, ge=0, le=1)
    """Probability of color jitter."""

    brightness: float = Field(default=0.4, ge=0, le=10)
    """Strength of the brightness jitter: the factor is drawn from 1 ± this."""

    contrast: float = Field(default=0.4, ge=0, le=10)
    """Strength of the contrast jitter: the factor is drawn from 1 ± this."""

    saturation: float = Field(default=0.2, ge=0, le=10)
    """Strength of the saturation jitter: the factor is drawn from 1 ± this."""

    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Strength of the hue jitter: the hue is rotated by up to ± this share of a full turn."""

    grayscale: float = Field(default=0.2, ge=0, le=1)
    """Probability that a view is converted to grayscale."""

    solarize: float = Field(default=0.2, ge=0, le=1)
    """Probability that the second global view is solarized."""

    released_blur: bool = False
    """Whether to blur views with the probabilities of the released code (0, 0.9, 0.5 for first
    global, second global and local views) instead of the paper's (1, 0.1, 0.5).
    """

    @model_validator(mode="after")
    def _fits_together(self) -> "DinoConfig":
        if self.dino_weight == 0 and self.ibot_weight == 0:
            raise ValueError(
                "objective.dino_weight and objective.ibot_weight are both 0; give one a weight"
            )
        if self.min_mask_ratio > self.max_mask_ratio:
            raise ValueError(
                f"objective.min_mask_ratio={self.min_mask_ratio:g} is larger than "
                f"objective.max_mask_ratio={self.max_mask_ratio:g}; swap them"
            )
        if self.min_local_area > self.min_global_area:
            raise ValueError(
                f"objective.min_local_area={self.min_local_area:g} is larger than "
                f"objective.min_global_area={self.min_global_area:g}; swap them"
            )
        return self


# A closed set: a new objective adds its config here and its case to `objectives/build.py`.
ObjectiveConfig = Annotated[MaeConfig | DinoConfig, Field(discriminator="name")]
