"""Measures of the quality of feature vectors, without labels.

All in float64: a covariance squares the range of the features, and those of a collapsing run are
nearly equal.
"""

import torch
from torch import Tensor

# N feature vectors, D width.


def singular_values(features: Tensor) -> Tensor:
    """(N, D) → (min(N, D),) float64, largest first, 0 where rounding made them negative."""
    rows = features.double()
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def rankme(features: Tensor) -> float:
    """Effective number of dimensions that features use, in [1, min(N, D)]: the exponential of the
    entropy of their singular values.

    Args:
        features: (N, D), neither centered nor scaled.

    Source: Garrido et al. 2023 (RankMe), arXiv 2210.02885, equation 1.
    """
    values = singular_values(features)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float((-torch.special.xlogy(shares, shares).sum()).exp())


def alpha_req(features: Tensor) -> float:
    """Decay of the features' spectrum: α of λᵢ ∝ i^−α, fitted to the eigenvalues of their
    covariance. About 1 is good; far above it few directions hold nearly everything.

    Args:
        features: (N, D); centered here.

    Returns:
        α, or NaN where fewer than three eigenvalues are above rounding.

    Source: Agrawal et al. 2022 (α-ReQ), NeurIPS, section 3: least squares of log λᵢ on log i.
    """
    values = singular_values(features.double() - features.double().mean(dim=0)).square()
    # Features are float32 or coarser: below this they are noise.
    values = values[values > values[0] * 1e-9]
    if len(values) < 3:
        return float("nan")
    log_place = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device).log()
    log_value = values.log()
    place = log_place - log_place.mean()
    return float(-(place * (log_value - log_value.mean())).sum() / place.square().sum())


def spread(features: Tensor) -> float:
    """Standard deviation of the features' directions, in [0, 1]: 0 when all vectors point the same
    way, 1 when they point in all directions equally.

    Args:
        features: (N, D).

    Source: Chen & He 2020 (SimSiam), arXiv 2011.10566, section 4.1, times √D.
    """
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    return float((rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt())


def usage(codes: Tensor, count: int) -> float:
    """Share of a codebook's entries that occur, of those that could occur in N codes.

    Args:
        codes: (N,) int64 in [0, count).
        count: Number of entries.
    """
    return len(codes.unique()) / min(count, len(codes))
