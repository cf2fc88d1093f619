"""A pre-norm transformer block built from timm's layers, with timm's parameter names."""

from functools import partial
from typing import Literal, assert_never

from torch import Tensor, nn

from ssl_vit.models.attention import Attention
from ssl_vit.models.config import swiglu_hidden
from ssl_vit.models.drop_path import add_branch
from ssl_vit.models.patches import take
from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import LayerScale, Mlp, SwiGLUPacked  # noqa: E402

layer_norm = partial(nn.LayerNorm, eps=1e-6)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        width: D.
        heads: Number of attention heads.
        mlp_ratio: Hidden width divided by D; SwiGLU gets two thirds of it, for the same cost.
        feed_forward: GELU MLP or SwiGLU.
        layer_scale: Initial value of LayerScale, 0 for none.
        drop_path: Rate of stochastic depth in [0, 1), in training only; the two branches draw
            their samples independently.
        key_bias: See :class:`Attention`.

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, equations 2 and 3; Shazeer 2020, arXiv
        2002.05202 (SwiGLU).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        key_bias: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, heads, key_bias)
        self.ls1 = LayerScale(width, init_values=layer_scale) if layer_scale else nn.Identity()
        self.norm2 = layer_norm(width)
        self.mlp = _feed_forward(width, mlp_ratio, feed_forward)
        self.ls2 = LayerScale(width, init_values=layer_scale) if layer_scale else nn.Identity()

    def forward(
        self, tokens: Tensor, bias: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) → (B, K, D).

        Args:
            tokens: All tokens of a sample.
            bias: (heads, K, K) added to the attention scores, from
                :meth:`TokenBackbone.attention_bias`.
            wanted: (B, M) int64, the tokens of which there is a result, (B, M, D), if not of all:
                for a last block without a bias and without stochastic depth.
        """
        rate = self.drop_path if self.training else 0.0
        if wanted is not None:
            assert not rate
            tokens = take(tokens, wanted) + self.ls1(self.attn(self.norm1(tokens), bias, wanted))
            return tokens + self._feed_forward(tokens)
        tokens = add_branch(tokens, lambda kept: self._attend(kept, bias), rate)
        return add_branch(tokens, self._feed_forward, rate)

    def _attend(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        return self.ls1(self.attn(self.norm1(tokens), bias))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(tokens)))


def _feed_forward(width: int, ratio: float, kind: Literal["mlp", "swiglu"]) -> nn.Module:
    match kind:
        case "mlp":
            return Mlp(in_features=width, hidden_features=int(width * ratio))
        case "swiglu":
            # Gate and value share one matrix, so its output is twice the hidden width.
            hidden = swiglu_hidden(width, ratio)
            return SwiGLUPacked(in_features=width, hidden_features=2 * hidden)
    assert_never(kind)
