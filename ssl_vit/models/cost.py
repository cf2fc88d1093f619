"""What a network costs, worked out from its config: parameters, operations, memory. No torch.

What is counted as memory is what autograd keeps between the forward and the backward pass; the
tests compare it with what autograd says it keeps.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Literal, assert_never

from ssl_vit.models.config import (
    VitConfig,
    attends_plainly,
    stem_channels,
    swiglu_hidden,
)

Precision = Literal["float32", "bfloat16", "float16"]
FLOAT32 = 4


@dataclass(frozen=True)
class Arithmetic:
    """How the matrix products are computed."""

    precision: Precision
    device: Literal["cpu", "cuda"]

    @property
    def bytes(self) -> int:
        """Of one number in a matrix product."""
        return FLOAT32 if self.precision == "float32" else 2

    def keeps_scores(self, tokens: int) -> bool:
        """Whether attention keeps its score matrices (models/attention.py)."""
        return attends_plainly(self.device, self.precision == "bfloat16", tokens)


@dataclass(frozen=True)
class Cost:
    """What a part of a network needs; the costs of parts add up.

    Bytes are per image: what the backward pass needs of the forward pass.
    """

    trained: int = 0
    """Parameters."""
    frozen: int = 0
    """Parameters that are not trained: a teacher."""
    flops: float = 0.0
    """Operations of a forward pass of one image, a multiplication and an addition being two."""
    kept_bytes: float = 0.0
    """With all activations kept."""
    checkpointed_bytes: float = 0.0
    """With only the inputs of blocks kept."""
    recomputed_bytes: float = 0.0
    """And what is computed again inside one block; of parts, the largest counts."""
    cast_weights: int = 0
    """Numbers in weight matrices, which autocast keeps a lower-precision copy of."""
    held_bytes: float = 0.0
    """What lives as long as the forward pass without being kept for the backward pass."""
    working_bytes: float = 0.0
    """The most that is needed for a moment besides; of parts, the largest counts."""

    def __add__(self, other: "Cost") -> "Cost":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)}
        for name in ("recomputed_bytes", "working_bytes"):
            sums[name] = max(getattr(self, name), getattr(other, name))
        return Cost(**sums)


def linear(inputs: int, outputs: int, rows: float, arithmetic: Arithmetic) -> Cost:
    """A linear layer with bias that keeps its input."""
    kept = rows * inputs * arithmetic.bytes
    return Cost(
        trained=inputs * outputs + outputs,
        flops=2.0 * rows * inputs * outputs,
        kept_bytes=kept,
        checkpointed_bytes=kept,
        cast_weights=inputs * outputs,
    )


def norm(width: int, rows: float) -> Cost:
    """A LayerNorm that keeps its float32 input, mean and spread."""
    kept = rows * (width + 2) * FLOAT32
    return Cost(trained=2 * width, kept_bytes=kept, checkpointed_bytes=kept)


def blocks_cost(
    depth: int,
    width: int,
    heads: int,
    tokens: int,
    arithmetic: Arithmetic,
    mlp_ratio: float = 4.0,
    feed_forward: Literal["mlp", "swiglu"] = "mlp",
    layer_scale: float = 0.0,
) -> Cost:
    """``depth`` transformer blocks (`models/block.py`) over ``tokens`` tokens an image."""
    match feed_forward:
        case "mlp":
            hidden = widened = int(width * mlp_ratio)
        case "swiglu":
            hidden = swiglu_hidden(width, mlp_ratio)
            widened = 2 * hidden
        case _:
            assert_never(feed_forward)
    inside = (
        norm(width, tokens)
        + linear(width, 3 * width, tokens, arithmetic)
        + _attention(width, heads, tokens, arithmetic)
        + linear(width, width, tokens, arithmetic)
        + norm(width, tokens)
        + linear(width, widened, tokens, arithmetic)
        # GELU keeps its input; SwiGLU keeps gate and value, and the gate after its SiLU.
        + _kept(tokens * (widened if feed_forward == "mlp" else widened + hidden), arithmetic)
        + linear(hidden, width, tokens, arithmetic)
    )
    if layer_scale:
        inside += Cost(trained=2 * width) + _kept(2 * tokens * width, arithmetic)
    # The backward pass through the widest of it: a gradient and what it is made of.
    scores = heads * tokens**2 if arithmetic.keeps_scores(tokens) else 0
    working = 2 * max(tokens * widened, scores) * arithmetic.bytes
    return Cost(
        trained=depth * inside.trained,
        flops=depth * inside.flops,
        kept_bytes=depth * inside.kept_bytes,
        checkpointed_bytes=depth * tokens * width * FLOAT32,
        recomputed_bytes=inside.kept_bytes,
        cast_weights=depth * inside.cast_weights,
        working_bytes=working,
    )


def with_drop_path(blocks: Cost, rate: float) -> Cost:
    """The same blocks when each branch is computed for all but ``rate`` of the images, as in
    training. Counts are whole (`models/drop_path.py`): of few images a forward pass more or fewer
    are computed, of one always that one.
    """
    share = 1 - rate
    return replace(
        blocks,
        flops=share * blocks.flops,
        # A norm keeps the samples that were picked out for its branch; of all samples nothing is
        # kept, since adding a branch to them needs none for its gradient.
        kept_bytes=share * blocks.kept_bytes,
        recomputed_bytes=share * blocks.recomputed_bytes,
        working_bytes=share * blocks.working_bytes,
    )


def stem_cost(config: VitConfig, arithmetic: Arithmetic) -> Cost:
    """From pixels to the tokens of all patches."""
    (height, width), patches = config.height_width, config.num_patches
    match config.stem:
        case "patch":
            return linear(3 * config.patch_size**2, config.width, patches, arithmetic)
        case "conv":
            cost = Cost()
            channels = stem_channels(config.patch_size, config.width)
            for before, after in pairwise(channels):
                taken = _kept(before * height * width, arithmetic)
                height, width = height // 2, width // 2
                given = _kept(after * height * width, arithmetic)
                weights = 9 * before * after
                cost += taken + given
                cost += Cost(
                    trained=weights + 2 * after,
                    flops=2.0 * height * width * weights,
                    cast_weights=weights,
                )
            return cost + linear(channels[-1], config.width, patches, arithmetic)
    assert_never(config.stem)


def backbone_cost(config: VitConfig, patches: int, arithmetic: Arithmetic) -> Cost:
    """The whole backbone in training, its blocks over ``patches`` of an image's patches (MAE: the
    visible ones).
    """
    tokens = 1 + config.registers + patches
    rows = config.num_patches + (0 if config.registers else 1)
    extra = 1 + config.registers + (rows if config.position == "learned" else 0)
    blocks = blocks_cost(
        config.depth,
        config.width,
        config.heads,
        tokens,
        arithmetic,
        config.mlp_ratio,
        config.feed_forward,
        config.layer_scale,
    )
    return (
        stem_cost(config, arithmetic)
        + Cost(trained=extra * config.width)
        + with_drop_path(blocks, config.drop_path)
        + norm(config.width, tokens)
    )


def backbone_parameters(config: VitConfig) -> int:
    """All of a backbone's, however they are computed with."""
    return backbone_cost(config, 0, Arithmetic("float32", "cpu")).trained


def _attention(width: int, heads: int, tokens: int, arithmetic: Arithmetic) -> Cost:
    """Between the two linear layers: keeps queries, keys and values, and the scores or, fused, its
    output's normalizers.
    """
    kept = 3.0 * tokens * width * arithmetic.bytes
    if arithmetic.keeps_scores(tokens):
        kept += heads * tokens**2 * arithmetic.bytes
    else:
        kept += heads * tokens * FLOAT32
    return Cost(flops=4.0 * tokens**2 * width, kept_bytes=kept, checkpointed_bytes=kept)


def _kept(numbers: float, arithmetic: Arithmetic) -> Cost:
    kept = numbers * arithmetic.bytes
    return Cost(kept_bytes=kept, checkpointed_bytes=kept)
