"""What a network costs, as numbers, and how it is computed; no torch.

`cost/counting.py` counts them.
"""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
FLOAT32 = 4


@dataclass(frozen=True)
class Arithmetic:
    """How the matrix products are computed."""

    precision: Precision
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Parameters:
    """How many numbers an objective consists of."""

    trained: int = 0
    frozen: int = 0
    """Not trained: a teacher's."""
    backbone: int = 0
    """The backbone's share of the trained ones."""


@dataclass(frozen=True)
class Cost(Parameters):
    """What a training step needs. Bytes are per image, unless stated otherwise."""

    step_flops: float = 0.0
    """Operations of the forward and backward pass of one image, a multiplication and an addition
    being two; what is computed again is not counted.
    """
    kept_bytes: float = 0.0
    """What the backward pass needs of the forward pass."""
    checkpointed_bytes: float = 0.0
    """The same with only the inputs of blocks kept."""
    recomputed_bytes: float = 0.0
    """And what is computed again inside the largest block."""
    held_bytes: float = 0.0
    """What lives as long as the forward pass without being kept for the backward pass."""
    working_bytes: float = 0.0
    """The most that is needed for a moment in addition."""
    fixed_bytes: float = 0.0
    """What the forward pass makes of weights and keeps, however many images there are: autocast's
    lower-precision copies.
    """
