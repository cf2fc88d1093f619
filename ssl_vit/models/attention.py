"""Multi-head self-attention with timm's parameters and two ways to compute it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.config import attends_plainly
from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import Attention as TimmAttention  # noqa: E402 - only importable after the above


class Attention(TimmAttention):
    """Scaled-dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    torch's fused kernel everywhere but in bfloat16 on a CPU, where two plain matrix products train
    about three times faster than it (docs/benchmarks.md, "Attention on a CPU") as long as the
    scores, quadratic in the tokens, stay small.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, num_heads=heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] - no mask, nothing causal
        """(B, K, D) → (B, K, D)."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if attends_plainly(queries.device.type, queries.dtype == torch.bfloat16, count):
            scores = (queries * self.scale) @ keys.transpose(-2, -1)
            mixed = scores.softmax(dim=-1).to(values.dtype) @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))

    def of_first(self, x: Tensor) -> Tensor:
        """(B, K, D) → (B, heads, K): how much the first token attends to each."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.num_heads, width // self.num_heads)
        queries, keys, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (queries[:, :, :1].float() * self.scale) @ keys.float().transpose(-2, -1)
        return scores.softmax(dim=-1).squeeze(2)
