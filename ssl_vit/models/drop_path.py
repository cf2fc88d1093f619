"""Stochastic depth that saves what it drops: samples that leave a branch out are not computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# B samples, S of them that are kept, K tokens each, D width.


def num_kept(batch: int, rate: float) -> int:
    """Of ``batch`` samples, those whose branch is computed: all but ``rate`` of them, at least
    one.
    """
    return max(1, round(batch * (1 - rate)))


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Add a residual branch that is computed for a random part of the samples only.

    The others pass unchanged. What is added is scaled up by B / S, so that its mean over all draws
    is the branch of every sample. A batch too small to leave a sample out leaves none out.

    Args:
        tokens: (B, K, D).
        branch: (S, K, D) → (S, K, D), each sample by itself.
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
    # Not `tokens[kept]`: its gradient on a GPU sorts the indices first, lest samples repeat.
    residual = branch(tokens.index_select(0, kept))
    result: Any = _AddToKept.apply(tokens, residual, kept, batch / keep)
    return result


class _AddToKept(torch.autograd.Function):
    """``tokens`` with ``scale`` × ``residual`` added to the samples ``kept``.

    torch's own index_add keeps the residual for its backward pass, and needs of it no more than the
    shape: a fifth more memory for a block in bfloat16.
    """

    @staticmethod
    def forward(tokens: Tensor, residual: Tensor, kept: Tensor, scale: float) -> Tensor:
        # Under autocast the residual is in lower precision than the tokens, which is refused.
        return tokens.index_add(0, kept, residual.to(tokens.dtype), alpha=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor):
        _, residual, kept, ctx.scale = inputs
        ctx.dtype = residual.dtype
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override] - of one output
        (kept,) = ctx.saved_tensors
        # Scaled before it is rounded, as torch does it.
        residual_gradient = gradient.index_select(0, kept).mul_(ctx.scale).to(ctx.dtype)
        return gradient, residual_gradient, None, None
