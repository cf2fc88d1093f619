"""Configuration of visual tokenizers (Peng et al. 2022, arXiv 2208.06366)."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ssl_vit.models.config import BackboneConfig, Hides
from ssl_vit.objectives.given import Codes, Given, GivenNetwork
from ssl_vit.objectives.method import Symptom
from ssl_vit.objectives.one_crop.config import OneCropConfig, paired_crops

# Bounds of a codebook whose size follows from the data; 8,192 is the authors'.
_FEWEST, _MOST = 64, 8192
# Images, and patches of a step, for each of its codes.
_IMAGES_PER_CODE, _PATCHES_PER_CODE = 4, 8


class TokenizerConfig(OneCropConfig):
    """Tokenizer (VQ-KD, Peng et al. 2022): a codebook of patches, for BEiT to predict."""

    name: Literal["tokenizer"] = "tokenizer"
    """Which objective this section configures."""

    target: Literal["features", "pixels", "random", "kmeans"] = "features"
    """What the decoder predicts from the codes. `features`: a teacher's patch features (VQ-KD).
    `pixels`: normalized pixels. `random`: features of an untrained backbone (after Liu et al. 2022,
    dBOT). `kmeans`: the teacher is the encoder and is not trained; only codebook and decoder are.
    """

    teacher: str = ""
    """For `features` and `kmeans`: an export of ssl-vit, or the folder of a run that has one."""

    teacher_info: GivenNetwork | None = None
    """Description of the teacher, filled in by the run."""

    codebook_size: Annotated[int, Field(ge=2, le=65_536)] | Literal["auto"] = "auto"
    """Number of codes. `auto`: the largest power of two from 64 to 8192 with four images in the
    data, and 8 patches in a step, for each code.
    """

    code_dim: int = Field(default=32, ge=2, le=32)
    """Dimension of a code (32 in the release; larger ones leave codes unused). With `kmeans`, the
    teacher's width.
    """

    codebook_momentum: float = Field(default=0.99, ge=0, lt=1)
    """Share of a code, and of the count of its hits, that one optimizer step keeps."""

    codebook_start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps before k-means places the codes; until then the decoder sees the encoder's
    output itself. 0: after the first step (the authors': before it). Later suits short runs, whose
    encoder moves away from its codes at first.
    """

    dead_below: float = Field(default=0.1, ge=0, le=1)
    """A code is replaced by a random patch of the step when the moving average of its hits falls
    below this share of the average code's. 0: never, as in the authors' code.
    """

    commitment: float = Field(default=1.0, ge=0, le=100)
    """Weight of the squared distance between an encoded patch and its code."""

    decoder_depth: int = Field(default=1, ge=0, le=100)
    """Number of transformer blocks in the decoder; 0: one linear layer."""

    min_crop_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest crop as a share of the image's area."""

    @model_validator(mode="after")
    def _teacher_is_used(self) -> "TokenizerConfig":
        if self.teacher and self.given is None:
            raise ValueError(
                f"objective.teacher has no effect with objective.target={self.target}; add "
                "objective.target=features, or leave objective.teacher out"
            )
        return self

    @property
    def needs(self) -> Hides:
        """Nothing is hidden."""
        return "no"

    @property
    def given(self) -> Given | None:
        """See :class:`MethodConfig`: the teacher."""
        if self.target not in ("features", "kmeans"):
            return None
        return Given(
            "teacher",
            "backbone",
            self.teacher,
            "add  objective.teacher=RUN  (a run of any objective, such as ssl-vit pretrain "
            "mae_small_data --run RUN …), or objective.target=pixels, which needs none",
        )

    @property
    def is_backbone_given(self) -> bool:
        """See :class:`MethodConfig`."""
        return self.target == "kmeans"

    @property
    def num_codes(self) -> int:
        """See :class:`MethodConfig`."""
        return _MOST if self.codebook_size == "auto" else self.codebook_size

    def num_hidden(self, backbone: BackboneConfig) -> int:
        """None."""
        return 0

    def codes(self, backbone: BackboneConfig) -> Codes:
        """Sizes of the codebook."""
        is_projected = self.target != "kmeans"
        dim = self.code_dim if is_projected else backbone.width
        return Codes(num=self.num_codes, dim=dim, is_projected=is_projected)

    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """The training crop, and the same at the teacher's size if its patches are others."""
        given = self.teacher_info if self.target == "features" else None
        return paired_crops(backbone, given and given.backbone)

    def fit_to_data(
        self, backbone: BackboneConfig, num_images: int, images_per_step: int
    ) -> "TokenizerConfig":
        """See :class:`MethodConfig`: the number of codes.

        Raises:
            ValueError: A step has too few patches to begin with that many codes.
        """
        patches = images_per_step * backbone.num_patches
        size = self.codebook_size
        if size == "auto":
            most = min(num_images // _IMAGES_PER_CODE, patches // _PATCHES_PER_CODE, _MOST)
            size = 1 << max(most, _FEWEST).bit_length() - 1
        if patches < 2 * size:
            raise ValueError(
                f"objective.codebook_size={size} needs at least {2 * size} patches in a step, and "
                f"data.global_batch_size={images_per_step} has {patches}; lower "
                "objective.codebook_size or raise data.global_batch_size"
            )
        return self.model_copy(update={"codebook_size": size})

    def cures(self, symptom: Symptom) -> str:
        """See :class:`MethodConfig`."""
        if symptom == "few codes":
            return "a smaller objective.codebook_size, objective.dead_below=0.1, a larger batch"
        if symptom == "empty codes":
            return (
                "more steps (a longer schedule.length or a smaller data.global_batch_size), a "
                "later objective.codebook_start, another optimizer.base_learning_rate"
            )
        return super().cures(symptom)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`."""
        return {"codebook_size": 16, "code_dim": 8, "decoder_depth": min(self.decoder_depth, 1)}
