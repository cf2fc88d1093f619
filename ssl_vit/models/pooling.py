"""From features to one vector an image, for heads."""

from typing import Literal, assert_never

from torch import Tensor, nn

from ssl_vit.models.initialization import initialize
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.models.vit import Features

define_missing_ops()
from timm.layers import AttentionPoolLatent  # noqa: E402 - only importable after the line above

PoolKind = Literal["cls", "mean", "map"]


class Pool(nn.Module):
    """Class token, mean of the patch tokens, or attention pooling with one learned query.

    Args:
        kind: ``cls``, ``mean`` or ``map`` (Zhai et al. 2021, arXiv 2106.04560, section 3.2, "MAP
            head").
        width: D.
        heads: Attention heads of ``map``.
    """

    def __init__(self, kind: PoolKind, width: int, heads: int = 8) -> None:
        super().__init__()
        self.kind: PoolKind = kind
        if kind == "map":
            self.attention = AttentionPoolLatent(width, num_heads=heads)
            initialize(self.attention, "truncated_normal")

    def forward(self, features: Features) -> Tensor:
        """Features of B images → (B, D)."""
        match self.kind:
            case "cls":
                return features.cls
            case "mean":
                return features.patches.mean(dim=1)
            case "map":
                return self.attention(features.patches)
        assert_never(self.kind)
