"""The projection head, which maps features to logits over prototypes."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.initialization import initialize

# R rows, D width, C prototypes.


class Prototypes(nn.Module):
    """A linear layer with rows normalized to length 1: for inputs of length 1, each logit is the
    cosine similarity to a prototype.

    The length is fixed at 1, as in Caron et al. for stability (appendix C, "norm of the last
    layer"), so the length of the stored weights has no effect and is not constrained.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """(R, W) → (R, C)."""
        return F.linear(rows, F.normalize(self.weight.float(), dim=1).to(rows.dtype))


class ProjectionHead(nn.Module):
    """Linear layers with GELU, an L2-normalized bottleneck, and prototypes.

    Args:
        width: D.
        hidden: Width of the hidden layers.
        layers: Number of linear layers before the prototypes, at least 1.
        bottleneck: Output width of the last of them.
        prototypes: C.

    Source: Caron et al. 2021 (DINO), arXiv 2104.14294, section 3.1, "Network architecture", and
        appendix C.
    """

    def __init__(
        self, width: int, hidden: int, layers: int, bottleneck: int, prototypes: int
    ) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for place, (before, after) in enumerate(itertools.pairwise(sizes)):
            parts += [nn.GELU()] if place else []
            parts.append(nn.Linear(before, after))
        self.layers = nn.Sequential(*parts)
        initialize(self.layers, "truncated_normal")
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, features: Tensor) -> Tensor:
        """(…, D) → (…, C) logits, not divided by a temperature."""
        rows = self.layers(features)
        # In half precision the smallest norms would round to 0.
        return self.prototypes(F.normalize(rows.float(), dim=-1, eps=1e-6).to(rows.dtype))
