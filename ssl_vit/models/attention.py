"""Multi-head self-attention with timm's parameter names and two implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.config import attends_plainly
from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import Attention as TimmAttention  # noqa: E402 - only importable after the above


class Attention(TimmAttention):
    """Scaled-dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    Uses torch's fused kernel, except in bfloat16 on a CPU: there, two plain matrix products train
    about three times faster (docs/benchmarks.md, "Attention on a CPU") as long as the scores,
    quadratic in the number of tokens, stay small.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, num_heads=heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] - no attention mask
        """(B, K, D) → (B, K, D)."""
        queries, keys, values = self._project(x)
        if attends_plainly(queries.device.type, queries.dtype == torch.bfloat16, x.shape[1]):
            scores = (queries * self.scale) @ keys.transpose(-2, -1)
            mixed = scores.softmax(dim=-1).to(values.dtype) @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def of_first(self, x: Tensor) -> Tensor:
        """(B, K, D) → (B, heads, K): attention weights of the first token."""
        queries, keys, _ = self._project(x)
        scores = (queries[:, :, :1].float() * self.scale) @ keys.float().transpose(-2, -1)
        return scores.softmax(dim=-1).squeeze(2)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, K, D) → queries, keys and values, (B, heads, K, D / heads) each."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)
