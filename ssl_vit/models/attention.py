"""Multi-head self-attention with timm's parameter names and two implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.config import attends_plainly
from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import Attention as TimmAttention  # noqa: E402 - only importable after the above


class Attention(TimmAttention):
    """Scaled-dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    Uses torch's fused kernel, except in bfloat16 on a CPU: there, two plain matrix products train
    about three times faster (docs/benchmarks.md, "Attention on a CPU") as long as the scores,
    quadratic in the number of tokens, stay small.

    Args:
        width: D.
        heads: Number of attention heads.
        key_bias: Whether keys have a bias, as in ViT; queries and values always do.
    """

    def __init__(self, width: int, heads: int, key_bias: bool = True) -> None:
        super().__init__(width, num_heads=heads, qkv_bias=key_bias)
        if not key_bias:
            self.qkv = _LinearWithoutKeyBias(width)

    def forward(  # type: ignore[override] - no attention mask
        self, x: Tensor, bias: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) → (B, K, D).

        Args:
            x: Tokens.
            bias: (heads, K, K), [query, key]: added to the scores before the softmax.
            wanted: (B, M) int64: only these tokens attend, to all, which gives (B, M, D); without a
                bias.
        """
        queries, keys, values = self._project(x)
        if wanted is not None:
            assert bias is None
            queries = queries.gather(
                2, wanted[:, None, :, None].expand_as(queries[:, :, : wanted.shape[1]])
            )
        if bias is not None:
            bias = bias.to(queries.dtype).unsqueeze(0)
        if attends_plainly(queries.device.type, queries.dtype == torch.bfloat16, x.shape[1]):
            scores = (queries * self.scale) @ keys.transpose(-2, -1)
            if bias is not None:
                scores = scores + bias
            mixed = scores.softmax(dim=-1).to(values.dtype) @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def of_first(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, K, D) → (B, heads, K): attention weights of the first token; arguments as in
        :meth:`forward`.
        """
        queries, keys, _ = self._project(x)
        scores = (queries[:, :, :1].float() * self.scale) @ keys.float().transpose(-2, -1)
        if bias is not None:
            scores = scores + bias[:, :1].float()
        return scores.softmax(dim=-1).squeeze(2)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, K, D) → queries, keys and values, (B, heads, K, D / heads) each."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        # Not permuted before they are separated, or their gradients would be copied once more.
        return tuple(each.transpose(1, 2) for each in qkv.unbind(2))


class _LinearWithoutKeyBias(nn.Linear):
    """(…, D) → (…, 3 D): queries, keys and values, of which keys have no bias (Bao et al. 2021).

    The biases belong to this layer, not to the attention as in timm: at ZeRO-3 only a layer that is
    called has its parameters, and `of_first` calls no more than this one.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, input: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(input, self.weight, bias)
