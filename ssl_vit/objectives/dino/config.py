"""Configuration of self-distillation: DINO, iBOT and DINOv2."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ssl_vit.models.config import BackboneConfig, Hides
from ssl_vit.objectives.method import MethodConfig, Symptom

NUM_GLOBALS = 2  # global views per image


class DinoConfig(MethodConfig):
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

    @property
    def needs(self) -> Hides:
        """The student gets a mask token in place of masked patches (iBOT)."""
        return "fill" if self.ibot_weight else "no"

    @property
    def num_codes(self) -> int:
        """Number of prototypes of the class token's head."""
        return self.prototypes

    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """Two global views, and the local views if there are any."""
        local = (self.local_crops, (self.local_size, self.local_size))
        return ((NUM_GLOBALS, backbone.height_width), *([local] if self.local_crops else []))

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; local views must be whole patches, and iBOT needs patches to
        mask.
        """
        super().check(backbone)
        stride = backbone.stride
        if self.local_crops and self.local_size % stride:
            below = self.local_size // stride * stride
            near = f"{below} or {below + stride}" if below else f"{stride}"
            raise ValueError(
                f"objective.local_size={self.local_size} is not a multiple of "
                f"backbone.patch_size={stride}; set objective.local_size={near}"
            )
        most = round(self.max_mask_ratio * backbone.num_patches)
        if self.ibot_weight and not (self.mask_probability and most):
            raise ValueError(
                f"objective.ibot_weight={self.ibot_weight:g} has nothing to weigh: no patch is "
                f"ever masked at objective.mask_probability={self.mask_probability:g} and "
                f"objective.max_mask_ratio={self.max_mask_ratio:g}; raise these, or set "
                "objective.ibot_weight=0"
            )

    def check_micro_batch(self, num_images: int) -> None:
        """See :class:`MethodConfig`."""
        if num_images == 1 and self.koleo_weight:
            raise ValueError(
                "objective.koleo_weight compares the images of a micro-batch, and it has only one; "
                "set engine.micro_batch_size=2 or more, or objective.koleo_weight=0"
            )

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """KoLeo and Sinkhorn-Knopp, where they are used."""
        found: dict[str, object] = {}
        if self.koleo_weight:
            found["KoLeo (within a micro-batch)"] = micro_batch_size
        if self.centering == "sinkhorn":
            name = "Sinkhorn-Knopp (over one micro-batch of all processes)"
            found[name] = micro_batch_size * world_size
        return found

    def cures(self, symptom: Symptom) -> str:
        """See :class:`MethodConfig`."""
        match symptom:
            case "one answer":
                first = "objective.centering=sinkhorn"
                if self.centering == "sinkhorn":
                    first = "a larger engine.micro_batch_size (Sinkhorn-Knopp sees one micro-batch)"
                return (
                    f"{first}, objective.momentum closer to 1, a lower optimizer.base_learning_rate"
                )
            case "no answer":
                return (
                    "a lower objective.teacher_temperature, a longer objective.temperature_warmup, "
                    "fewer objective.prototypes"
                )
            case "one direction" | "few dimensions":
                return (
                    "a higher objective.koleo_weight, a lower optimizer.base_learning_rate, "
                    "objective.momentum closer to 1"
                )
            case "few codes" | "empty codes":  # of a tokenizer
                return super().cures(symptom)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`."""
        return {
            "prototypes": 64,
            "bottleneck": 16,
            "head_hidden": 32,
            "ibot_prototypes": 32 if self.ibot_prototypes else 0,
            "ibot_bottleneck": 16,
            "local_crops": min(2, self.local_crops),
            "local_size": 2 * backbone.stride,
        }
