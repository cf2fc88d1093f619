"""Configuration of the backbones; separate from their code so that a config loads without torch."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict, assert_never

from pydantic import Field, model_validator

from ssl_vit.config import Config


class VitSize(TypedDict):
    """The three numbers behind the letter of a model size."""

    width: int
    depth: int
    heads: int


VIT_SIZES: dict[str, VitSize] = {
    # Ti, S: Touvron et al. 2020 (DeiT), arXiv 2012.12877, table 1.
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    # B, L, H: Dosovitskiy et al. 2020 (ViT), arXiv 2010.11929, table 1.
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
    # g: Oquab et al. 2023 (DINOv2), arXiv 2304.07193, table 17 (1536 wide, not Zhai et al.'s 1408).
    "giant": {"width": 1536, "depth": 40, "heads": 24},
}

CONV_STEM_PATCHES = (2, 4, 8, 16, 32)

_MOST_TOKENS_UNFUSED = 1024


def attends_plainly(device: str, is_bfloat16: bool, tokens: int) -> bool:
    """Whether attention is two plain matrix products: in bfloat16 on a CPU they train faster than
    torch's fused kernel as long as the scores, quadratic in the number of tokens, stay small.
    """
    return device == "cpu" and is_bfloat16 and tokens <= _MOST_TOKENS_UNFUSED


def stem_channels(patch_size: int, width: int) -> list[int]:
    """Channels before and after each 3×3 convolution of a conv stem: doubling up to ``width``."""
    halvings = patch_size.bit_length() - 1
    return [3] + [max(8, width >> (halvings - 1 - i)) for i in range(halvings)]


def swiglu_hidden(width: int, mlp_ratio: float) -> int:
    """Hidden width of a SwiGLU with the cost of an MLP of this ratio; a multiple of 8, for GPU
    efficiency.
    """
    return (int(width * mlp_ratio * 2 / 3) + 7) // 8 * 8


Hides = Literal["no", "fill", "drop"]
"""What a backbone can do with hidden patches, in increasing order: nothing, replace them with a
token, or leave them out.
"""
HIDES: tuple[Hides, ...] = ("no", "fill", "drop")
Pooling = Literal["cls", "mean", "map"]
"""How a classifier makes one vector of a backbone's tokens; see `ClassificationConfig`."""


class BackboneConfig(Config):
    """What objectives, views, exports and the plan may ask of any backbone's configuration."""

    name: Any
    """Which backbone this is; each one's own literal."""

    width: int
    """Width of a token, D."""

    image_size: (
        Annotated[int, Field(ge=1, le=16_384)]
        | tuple[Annotated[int, Field(ge=1, le=16_384)], Annotated[int, Field(ge=1, le=16_384)]]
    ) = 224
    """Side of the training crop in pixels, or [height, width]; determines the grid of the position
    embedding, which is interpolated for other sizes.
    """

    initialization: Literal["xavier_uniform", "truncated_normal", "depth_scaled"] = "xavier_uniform"
    """Initialization of linear layers. `xavier_uniform`: He et al. 2021, A.1. `truncated_normal`:
    with standard deviation 0.02 (ViT, DINOv2). `depth_scaled`: the same, and the last weights of
    each branch of layer l, from 1, divided by √(2 l) (BEiT).
    """

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels between two neighboring patches."""

    @property
    @abstractmethod
    def hides(self) -> Hides:
        """What this backbone can do with hidden patches."""

    def cannot_hide(self, least: Hides) -> str:
        """Which setting keeps this backbone from doing ``least`` with hidden patches, and what to
        choose instead: "… cannot; choose …".
        """
        able = ", ".join(f"backbone.name={name}" for name in backbones_that_hide(least))
        return f"backbone.name={self.name} cannot; choose {able}"

    @property
    def mixes_samples(self) -> bool:
        """Whether an image's features depend on the others in its micro-batch in training (batch
        normalization).
        """
        return False

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return 3

    @property
    def height_width(self) -> tuple[int, int]:
        """(H, W) of the training crop in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across) of the training crop."""
        height, width = self.height_width
        return height // self.stride, width // self.stride

    @property
    def num_patches(self) -> int:
        """N, the number of patches of a training crop."""
        return self.grid[0] * self.grid[1]

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """As ``MethodConfig.grouped``: the parts of the result that depend on how images are
        grouped.
        """
        return {}

    @abstractmethod
    def shrunk(self) -> dict[str, Any]:
        """Settings of a backbone a thousand times smaller, with every switch unchanged."""


class VitConfig(BackboneConfig):
    """Vision Transformer (Dosovitskiy et al. 2020). Sizes by name: ``models.config.VIT_SIZES``."""

    name: Literal["vit"] = "vit"
    """Which backbone this section configures."""

    width: int = Field(default=768, ge=16, le=65_536)
    """Width of a token, D."""

    depth: int = Field(default=12, ge=1, le=1_000)
    """Number of transformer blocks."""

    heads: int = Field(default=12, ge=1, le=65_536)
    """Number of attention heads; divides the width."""

    patch_size: int = Field(default=16, ge=1, le=1_024)
    """Side of a patch in pixels."""

    stem: Literal["patch", "conv"] = "patch"
    """Patch embedding. `patch`: one convolution whose kernel equals its stride. `conv`: overlapping
    3×3 convolutions (Xiao et al. 2021).
    """

    position: Literal["sincos", "learned", "relative"] = "learned"
    """Position embedding. `sincos`: fixed 2-D sine-cosine (He et al. 2021). `learned`: trained
    (Dosovitskiy et al. 2020). `relative`: none, but a trained bias on attention scores for every
    offset between two patches, and keys without a bias (BEiT).
    """

    relative_tables: Literal["shared", "per_block"] = "shared"
    """Where `position=relative` keeps its biases: one table for all blocks (pre-training), or one
    in each block (fine-tuning), which starts as a copy of the shared one if weights with that are
    loaded.
    """

    registers: int = Field(default=0, ge=0, le=1_024)
    """Number of register tokens: extra tokens without a position (Darcet et al. 2023)."""

    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward layer: GELU MLP, or SwiGLU (Shazeer 2020) of two thirds of the hidden width."""

    mlp_ratio: float = Field(default=4.0, ge=0.1, le=64)
    """Hidden width of the feed-forward layer divided by the token width."""

    layer_scale: float = Field(default=0.0, ge=0, le=100)
    """Initial value of LayerScale (Touvron et al. 2021); 0 leaves it out."""

    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: share of samples that skip a branch in training. Skipped samples are not
    computed, and their number in a batch is exact (rounded, never all; Oquab et al. 2023, section
    5).
    """

    drop_path_rule: Literal["constant", "linear"] = "constant"
    """Stochastic depth by block. `constant`: `drop_path` in every block (DINOv2). `linear`: from 0
    in the first block to `drop_path` in the last (Huang et al. 2016; DeiT, BEiT).
    """

    @model_validator(mode="after")
    def _shapes_fit(self) -> "VitConfig":
        if self.width % self.heads:
            divisors = [h for h in range(1, 65) if self.width % h == 0]
            raise ValueError(
                f"backbone.heads={self.heads} does not divide backbone.width={self.width}; "
                f"heads that do: {', '.join(map(str, divisors))}"
            )
        if self.width % 4 and self.position == "sincos":
            raise ValueError(
                f"backbone.width={self.width} is not a multiple of 4, which 2-D sine positions "
                "need; choose backbone.position=learned or another width"
            )
        if any(side % self.patch_size for side in self.height_width):
            near = [max(1, round(x / self.patch_size)) * self.patch_size for x in self.height_width]
            square = isinstance(self.image_size, int)
            raise ValueError(
                f"backbone.image_size={self.image_size if square else list(self.height_width)} is "
                f"not a multiple of backbone.patch_size={self.patch_size}; the nearest is "
                f"{near[0] if square else near}"
            )
        if self.stem == "conv" and self.patch_size not in CONV_STEM_PATCHES:
            raise ValueError(
                "a conv stem halves the image and cannot make "
                f"backbone.patch_size={self.patch_size}; "
                f"it can make {', '.join(map(str, CONV_STEM_PATCHES))}"
            )
        return self

    @model_validator(mode="after")
    def _relative_positions_fit(self) -> "VitConfig":
        if self.position == "relative" and self.registers:
            raise ValueError(
                f"backbone.registers={self.registers} have no place in the table of "
                "backbone.position=relative; set backbone.registers=0, or choose "
                "backbone.position=learned"
            )
        if self.position != "relative" and self.relative_tables != "shared":
            raise ValueError(
                f"backbone.relative_tables={self.relative_tables} has no effect with "
                f"backbone.position={self.position}; leave it out, or choose "
                "backbone.position=relative"
            )
        return self

    @property
    def stride(self) -> int:
        """See :class:`BackboneConfig`; patches do not overlap, even with an overlapping stem."""
        return self.patch_size

    @property
    def hides(self) -> Hides:
        """Attention is global, so any patch can be left out, unless the bias of relative positions
        is that of a whole grid.
        """
        return "fill" if self.position == "relative" else "drop"

    def cannot_hide(self, least: Hides) -> str:
        """See :class:`BackboneConfig`."""
        return "backbone.position=relative cannot; choose backbone.position=learned or sincos"

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The rate of stochastic depth of each block."""
        match self.drop_path_rule:
            case "constant":
                return (self.drop_path,) * self.depth
            case "linear":
                steps = max(1, self.depth - 1)
                return tuple(self.drop_path * block / steps for block in range(self.depth))
        assert_never(self.drop_path_rule)

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """Stochastic depth skips a whole number of images per micro-batch, drawn per rank."""
        if not self.drop_path:
            return {}
        return {"drop path (by process and micro-batch)": (micro_batch_size, world_size)}

    def shrunk(self) -> dict[str, Any]:
        """See :class:`BackboneConfig`."""
        return {"width": 48, "depth": 2, "heads": 3, "image_size": 4 * self.patch_size}


# The closed set of backbones: a new one adds its config here and its case to `models/build.py`.
BACKBONES: tuple[Callable[[], BackboneConfig], ...] = (VitConfig,)


def backbones_that_hide(least: Hides) -> list[str]:
    """Names of the backbones that, by default, can do at least this with hidden patches."""
    found = (backbone() for backbone in BACKBONES)
    return [each.name for each in found if HIDES.index(each.hides) >= HIDES.index(least)]
