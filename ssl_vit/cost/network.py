"""Parameters, operations and bytes of a network, as plain numbers; does not import torch.

`cost/counting.py` computes them.
"""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
FLOAT32 = 4


@dataclass(frozen=True)
class Arithmetic:
    """Precision and device of the matrix products."""

    precision: Precision
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Parameters:
    """Number of parameters of an objective."""

    trained: int = 0
    """Trained parameters."""
    frozen: int = 0
    """Parameters that are not trained: those of a teacher."""
    backbone: int = 0
    """Trained parameters of the backbone."""
    exported: int = 0
    """Numbers in the files of an export."""


@dataclass(frozen=True)
class Cost(Parameters):
    """Cost of a training step. Bytes are per image, unless stated otherwise."""

    step_flops: float = 0.0
    """Operations of the forward and backward pass of one image; a multiplication and an addition
    count as two, and recomputation is not counted.
    """
    kept_bytes: float = 0.0
    """Activations kept for the backward pass."""
    checkpointed_bytes: float = 0.0
    """Activations kept for the backward pass with activation checkpointing: block inputs only."""
    recomputed_bytes: float = 0.0
    """Activations recomputed inside the largest block, with activation checkpointing."""
    held_bytes: float = 0.0
    """Tensors that live throughout the forward pass without being kept for the backward pass."""
    working_bytes: float = 0.0
    """Peak of temporary memory on top of the above."""
    fixed_bytes: float = 0.0
    """Bytes that do not depend on the number of images: autocast's lower-precision copies of
    weights, biases of attention, and frozen networks that are not saved (a tokenizer, a given
    teacher).
    """
