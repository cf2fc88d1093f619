"""Centered teacher targets, which prevent collapse, and the losses of the student against them.

Logits may have any precision; everything here is computed in float32, including matrix products
under autocast, because a temperature of 0.04 multiplies logits by 25 before the exponential.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.objectives.autocast import without_autocast
from ssl_vit.objectives.ranks import largest_over_ranks, sum_over_ranks

# R rows (images or patches), C prototypes, D width, B images, V views.


@torch.no_grad()
def sinkhorn(
    logits: Tensor,
    temperature: float | Tensor,
    counted: Tensor | None = None,
    iterations: int = 3,
) -> Tensor:
    """Targets in which all prototypes are used equally, over the rows of all ranks together.

    Args:
        logits: (R, C) teacher logits on this rank; R may differ between ranks, and be 0.
        temperature: The teacher's temperature, above 0; () float32 if a tensor.
        counted: (R,) bool, false for rows that are padding; None: all count.
        iterations: Number of alternations between normalizing prototypes and rows.

    Returns:
        (R, C) float32; counted rows sum to 1, padding is 0.

    Source: Caron et al. 2020 (SwAV), arXiv 2006.09882, section 3.1 and appendix A.1; to center a
        teacher, Oquab et al. 2023, arXiv 2304.07193, section 4.
    """
    scores = logits.float() / temperature
    if counted is not None:
        scores = scores.masked_fill(~counted.unsqueeze(1), -torch.inf)
    # A common factor cancels out; the largest exponential becomes 1. -1e30: no rank has any rows.
    largest = scores.amax() if scores.numel() else scores.new_tensor(-torch.inf)
    shares = (scores - largest_over_ranks(largest.clamp(min=-1e30))).exp()
    for _ in range(iterations):
        shares = _divide(shares, sum_over_ranks(shares.sum(dim=0, keepdim=True)))
        shares = _divide(shares, shares.sum(dim=1, keepdim=True))
    return shares


def _divide(shares: Tensor, total: Tensor) -> Tensor:
    """``shares / total``; 0 where the total is 0: padding, or a prototype whose exponentials all
    underflow.
    """
    return shares / total.clamp(min=torch.finfo(total.dtype).tiny)


class Center(nn.Module):
    """A moving average of the teacher's logits, subtracted before its softmax.

    It is updated once per step, over all micro-batches and ranks, so that the result does not
    depend on their number.

    Args:
        prototypes: C.
        momentum: Weight of the old center.

    Source: Caron et al. 2021 (DINO), arXiv 2104.14294, section 3.1, equation 4.
    """

    center: Tensor
    _sum: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))
        # The sum of a step's logits; the last element counts them.
        self.register_buffer("_sum", torch.zeros(prototypes + 1), persistent=False)
        self._step = -1

    @torch.no_grad()
    def forward(
        self, logits: Tensor, temperature: float, step: int, counted: Tensor | None = None
    ) -> Tensor:
        """(R, C) logits → (R, C) float32 targets; also accumulates the logits for :meth:`follow`.

        Args:
            logits: Teacher logits.
            temperature: The teacher's temperature, above 0.
            step: Optimizer step, counted from 0.
            counted: (R,) bool, false for rows that are padding; None: all count.
        """
        if step != self._step:  # discard the sums of a step that was not applied
            self._sum.zero_()
            self._step = step
        logits = logits.float()
        weights = logits.new_ones(len(logits)) if counted is None else counted.float()
        with without_autocast(logits):
            self._sum[:-1] += weights @ logits
        self._sum[-1] += weights.sum()
        return ((logits - self.center) / temperature).softmax(dim=1) * weights.unsqueeze(1)

    @torch.no_grad()
    def follow(self) -> None:
        """Update the center; called on every rank, once per applied step."""
        total = sum_over_ranks(self._sum.clone())
        mean = total[:-1] / total[-1].clamp(min=1)
        # A step without any rows (no patch was masked) leaves the center unchanged.
        self.center.lerp_(mean, (1 - self.momentum) * (total[-1] > 0).float())
        self._sum.zero_()


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """−Σ target · log softmax(logits / temperature) for each row.

    Args:
        targets: (…, C) float32; rows sum to 1 (or 0: padding).
        logits: (…, C) student logits.
        temperature: The student's temperature.

    Returns:
        (…) float32.

    Source: Caron et al. 2021, arXiv 2104.14294, equation 2.
    """
    return -(targets * F.log_softmax(logits.float() / temperature, dim=-1)).sum(dim=-1)


def view_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher view and a different student view.

    Args:
        targets: (T, B, C) targets of the T global views.
        logits: (V, B, C) student logits of all V views, the global ones first; V > 1.
        temperature: The student's temperature.

    Returns:
        float32 scalar.

    Source: Caron et al. 2021, arXiv 2104.14294, equation 3.
    """
    num_targets, num_views = len(targets), len(logits)
    log_shares = F.log_softmax(logits.float() / temperature, dim=-1)
    with without_autocast(log_shares):
        # One product for all pairs: (T, V), summed over images and prototypes.
        pairs = -torch.einsum("tbc,vbc->tv", targets, log_shares) / targets.shape[1]
    same = torch.eye(num_targets, num_views, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0.0).sum() / (num_targets * (num_views - 1))


def patch_loss(targets: Tensor, logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted sum of the cross-entropy over masked patches.

    Args:
        targets: (R, C) targets.
        logits: (R, C) student logits of the same patches.
        weights: (R,) float32, such that all images count equally; 0 for padding.
        temperature: The student's temperature.

    Returns:
        float32 scalar.

    Source: Zhou et al. 2021 (iBOT), arXiv 2111.07832, equation 2.
    """
    return (cross_entropy(targets, logits, temperature) * weights).sum()


def koleo(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko regularizer: pushes each image away from its nearest neighbor in the
    micro-batch.

    Args:
        features: (B, D), B > 1; normalized here.

    Returns:
        float32 scalar, −mean log of the distance to the nearest neighbor.

    Source: Sablayrolles et al. 2018, arXiv 1806.03198, section 3.2; Oquab et al. 2023,
        arXiv 2304.07193, section 4.
    """
    # In half precision a distance below 6e-5 would be 0, and its logarithm infinite.
    with without_autocast(features):
        points = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            similarity = points @ points.T
            nearest = similarity.fill_diagonal_(-1.0).argmax(dim=1)
        distances = (points - points[nearest]).norm(dim=-1)
        return -(distances + 1e-8).log().mean()
