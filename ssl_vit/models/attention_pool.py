"""Attention pooling: one query of its own, over all patches. timm's, with its parameter names."""

from torch import nn

from ssl_vit.models.block import layer_norm
from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import AttentionPoolLatent  # noqa: E402 - only importable after the above


def build_attention_pool(width: int, heads: int) -> nn.Module:
    """(B, N, D) tokens → (B, D) (Zhai et al. 2021, arXiv 2106.04560, appendix A).

    Args:
        width: D.
        heads: Number of attention heads.
    """
    return AttentionPoolLatent(width, num_heads=heads, norm_layer=layer_norm)  # type: ignore[arg-type]
