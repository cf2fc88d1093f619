"""A linear classifier on frozen features, as the head that fine-tuning starts from: a random head's
first gradients distort the features that it should use.

Kumar et al. 2022, arXiv 2202.10054 ("LP-FT").
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# N images, D features, C classes.

# Strengths of the L2 penalty on standardized features, the strongest first: each fit starts from
# the one before it.
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
_HELD_OUT = 10  # one image of so many, of each class
_ITERATIONS = 100
_TINY = 1e-6  # variance of a feature that is always the same


class FittedHead(NamedTuple):
    """A linear layer for features as they are, not standardized."""

    weight: Tensor
    """(C, D) float32."""
    bias: Tensor
    """(C,) float32."""
    penalty: float
    """Strength of the L2 penalty."""
    accuracy: float | None
    """Share in [0, 1] of the held-out images that are classified correctly; None if no class has
    two images.
    """


def fit_head(
    features: Tensor, labels: Tensor, num_classes: int, *, is_binary: bool, weights: Tensor | None
) -> FittedHead:
    """Logistic regression with an L2 penalty, which is chosen by the loss of a held-out tenth.

    Args:
        features: (N, D) float.
        labels: (N,) int64 in [0, num_classes), on the same device.
        num_classes: C.
        is_binary: Whether each class is a yes or no.
        weights: (C,) weight of each class in the loss; None: all are 1.

    Returns:
        The head fitted to all images, with the penalty that was chosen.
    """
    variance, mean = torch.var_mean(features.double(), dim=0, correction=0)
    scale = (variance + _TINY).rsqrt()
    rows = (features.double() - mean) * scale
    weights = None if weights is None else weights.double()
    held = _held_out(labels)
    best, least, accuracy = PENALTIES[0], float("inf"), None
    if held.any():
        start = rows.new_zeros(features.shape[1] + 1, num_classes)
        for penalty in PENALTIES:
            start = _fit(rows[~held], labels[~held], start, penalty, is_binary, weights)
            logits = rows[held] @ start[:-1] + start[-1]
            loss = float(_loss(logits, labels[held], is_binary, weights))
            if loss < least:
                best, least = penalty, loss
                accuracy = float((logits.argmax(dim=1) == labels[held]).double().mean())
    start = rows.new_zeros(features.shape[1] + 1, num_classes)
    found = _fit(rows, labels, start, best, is_binary, weights)
    weight = found[:-1] * scale.unsqueeze(1)
    return FittedHead(weight.T.float(), (found[-1] - mean @ weight).float(), best, accuracy)


def _held_out(labels: Tensor) -> Tensor:
    """(N,) bool: every tenth image of a class, but never its only one."""
    order = labels.argsort(stable=True)
    ranked = labels[order]
    counts = ranked.bincount()
    firsts = counts.cumsum(0) - counts
    place = torch.arange(len(labels), device=labels.device) - firsts[ranked]
    held = torch.zeros_like(labels, dtype=torch.bool)
    held[order] = (place % _HELD_OUT == 1) & (counts[ranked] > 1)
    return held


def _fit(
    rows: Tensor,
    labels: Tensor,
    start: Tensor,
    penalty: float,
    is_binary: bool,
    weights: Tensor | None,
) -> Tensor:
    """(D + 1, C) float64 weights, and the biases in the last row."""
    found = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(rows @ found[:-1] + found[-1], labels, is_binary, weights)
        loss = loss + penalty / 2 * found[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return found.detach()


def _loss(logits: Tensor, labels: Tensor, is_binary: bool, weights: Tensor | None) -> Tensor:
    if not is_binary:
        return F.cross_entropy(logits, labels, weight=weights)
    targets = F.one_hot(labels, logits.shape[1]).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    return each.mean() if weights is None else (each * weights[labels]).sum() / len(labels)
