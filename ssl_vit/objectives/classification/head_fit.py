"""A linear classifier on frozen features, as the head that fine-tuning starts from: a random head's
first gradients distort the features that it should use.

Kumar et al. 2022, arXiv 2202.10054 ("LP-FT").
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# N images, D features, C classes.

# Strengths of the L2 penalty on standardized features, the strongest first: each fit starts from
# the one before it.
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
_USUAL = 1e-2  # where nothing can be held out
_HELD_OUT = 10  # one image of so many, of each class
_ITERATIONS, _HISTORY = 100, 10
# Variances below it, as a share of the median, count as that: such a feature would be amplified.
_LEAST_VARIANCE, _TINY = 1e-3, 1e-12


class FittedHead(NamedTuple):
    """A linear layer for standardized features, ``(features - mean) * scale``."""

    weight: Tensor
    """(C, D) float32."""
    bias: Tensor
    """(C,) float32."""
    mean: Tensor
    """(D,) float32."""
    scale: Tensor
    """(D,) float32."""
    penalty: float
    """Strength of the L2 penalty."""
    accuracy: float | None
    """Share in [0, 1] of the held-out rows that are right; None if none is held out."""

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the same layer for features that are not standardized."""
        weight = self.weight * self.scale
        return weight, self.bias - weight @ self.mean


def fit_head(
    features: Tensor,
    targets: Tensor,
    held: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    is_multi_label: bool = False,
) -> FittedHead:
    """A linear layer with an L2 penalty, which is chosen by the loss of held-out rows.

    Args:
        features: (N, D) float.
        targets: (N, C) float, on the same device: 1 for each class of an image.
        held: (N,) bool, which rows are held out.
        loss_of: Mean loss over rows of logits and targets, both (n, C) float64.
        is_multi_label: Whether each class is a binary decision.

    Returns:
        The head fitted to all rows, with the penalty that was chosen.
    """
    variance, mean = torch.var_mean(features.double(), dim=0, correction=0)
    scale = variance.clamp(min=_LEAST_VARIANCE * float(variance.median()) + _TINY).rsqrt()
    rows, wanted = (features.double() - mean) * scale, targets.double()
    start = rows.new_zeros(features.shape[1] + 1, targets.shape[1])
    best, least, accuracy, before = _USUAL, float("inf"), None, start
    if held.any():
        for penalty in PENALTIES:
            start = _fit(rows[~held], wanted[~held], start, penalty, loss_of)
            logits = rows[held] @ start[:-1] + start[-1]
            loss = float(loss_of(logits, wanted[held]))
            if loss < least:
                best, least, before = penalty, loss, start
                accuracy = _accuracy(logits, wanted[held], is_multi_label)
    found = _fit(rows, wanted, before, best, loss_of)
    weight, bias = found[:-1].T.float(), found[-1].float()
    return FittedHead(weight, bias, mean.float(), scale.float(), best, accuracy)


def _accuracy(logits: Tensor, targets: Tensor, is_multi_label: bool) -> float:
    """Share of rows that are classified correctly; of binary decisions that are right."""
    if not is_multi_label:
        return float((logits.argmax(dim=1) == targets.argmax(dim=1)).double().mean())
    return float(((logits > 0) == (targets > 0)).double().mean())


def hold_out_views(labels: Tensor, numbers: Tensor) -> Tensor:
    """(N,) bool: all views of every tenth image of a label, but never of its only one.

    Args:
        labels: (N,) int64 from 0 on.
        numbers: (N,) int64 the image that each row is a view of.
    """
    images, row = numbers.unique(return_inverse=True)
    of_image = torch.empty_like(images).scatter_(0, row, labels)
    order = of_image.argsort(stable=True)
    ranked = of_image[order]
    counts = ranked.bincount()
    firsts = counts.cumsum(0) - counts
    place = torch.arange(len(images), device=labels.device) - firsts[ranked]
    held = torch.zeros_like(images, dtype=torch.bool)
    held[order] = (place % _HELD_OUT == 1) & (counts[ranked] > 1)
    return held[row]


def _fit(
    rows: Tensor,
    targets: Tensor,
    start: Tensor,
    penalty: float,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """(D + 1, C) float64 weights, and the biases in the last row."""
    found = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found], max_iter=_ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(rows @ found[:-1] + found[-1], targets)
        loss = loss + penalty / 2 * found[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return found.detach()
