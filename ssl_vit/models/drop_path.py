"""Efficient stochastic depth: samples that skip a branch are not computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# B samples, S of which are kept, K tokens each, D width.


def num_kept(batch: int, rate: float) -> int:
    """S, the number of samples whose branch is computed: ``batch`` × (1 − ``rate``), rounded, at
    least 1.
    """
    return max(1, round(batch * (1 - rate)))


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Add a residual branch that is computed for a random part of the samples only.

    The other samples are unchanged. The branch is scaled by B / S, so that its expectation is the
    branch of every sample. In a batch too small to leave a sample out, none is.

    Args:
        tokens: (B, K, D).
        branch: (S, K, D) → (S, K, D), independent for each sample.
        rate: Share of the samples that are left out, in [0, 1).

    Returns:
        (B, K, D).

    Source: Oquab et al. 2023, arXiv 2304.07193, section 5, "Efficient stochastic depth"; Huang et
        al. 2016, arXiv 1603.09382.
    """
    batch = len(tokens)
    keep = num_kept(batch, rate)
    if keep >= batch:
        return tokens + branch(tokens)
    kept = torch.randperm(batch, device=tokens.device)[:keep]
    both: Any = _Keep.apply(tokens, kept)
    result: Any = _AddToKept.apply(both[0], branch(both[1]), kept, batch / keep)
    return result


class _Keep(torch.autograd.Function):
    """``tokens``, and those of the samples ``kept``.

    One function, because torch would write the second's gradient into a tensor of zeros of full
    size and add that; here it is added to the gradient that passes.
    """

    @staticmethod
    def forward(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        return tokens.view_as(tokens), tokens.index_select(0, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, passing: Tensor, own: Tensor) -> tuple[Tensor, None]:  # type: ignore[override] - two outputs
        (kept,) = ctx.saved_tensors
        return passing.index_add(0, kept, own), None


class _AddToKept(torch.autograd.Function):
    """``tokens`` with ``scale`` × ``residual`` added to the samples ``kept``.

    torch's own index_add keeps the residual for its backward pass, but needs only its shape: a
    fifth more memory for a block in bfloat16.
    """

    @staticmethod
    def forward(tokens: Tensor, residual: Tensor, kept: Tensor, scale: float) -> Tensor:
        # index_add rejects mixed types; under autocast the residual has lower precision.
        return tokens.index_add(0, kept, residual.to(tokens.dtype), alpha=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor):
        _, residual, kept, ctx.scale = inputs
        ctx.dtype = residual.dtype
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override] - one output
        (kept,) = ctx.saved_tensors
        # Scaled before rounding, as in torch.
        residual_gradient = gradient.index_select(0, kept).mul_(ctx.scale).to(ctx.dtype)
        return gradient, residual_gradient, None, None
