"""From a backbone's tokens to logits: pooling and a linear layer, with timm's names."""

from typing import NamedTuple, assert_never

from torch import Tensor, nn

from ssl_vit.models.attention_pool import build_attention_pool
from ssl_vit.models.backbone import Backbone, Features, SparseBackbone, TokenBackbone
from ssl_vit.models.block import layer_norm
from ssl_vit.models.config import Pooling
from ssl_vit.models.initialization import initialize

# B images, N patches, D width, C classes.

_SMALL = 2e-5  # as in MAE's code for fine-tuning: all logits begin near 0


class Kept(NamedTuple):
    """The patches of a batch of images that are not dropped."""

    hidden: Tensor
    """(B, N) bool, true for those that are dropped."""
    visible: Tensor
    """(B, K) int64, the others."""


class Classifier(nn.Module):
    """A backbone, pooling, dropout and a linear layer.

    Args:
        backbone: The initialized backbone. With ``mean`` its last norm is frozen, because it is
            left out.
        pooling: See ``ClassificationConfig``.
        num_classes: C.
        dropout: Share of the pooled features that are set to 0 in training.
    """

    def __init__(
        self, backbone: Backbone, pooling: Pooling, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        width = backbone.config.width
        self.backbone, self.pooling = backbone, pooling
        self.fc_norm: nn.Module = nn.Identity()
        match pooling:
            case "mean":
                self.fc_norm = layer_norm(width)
                norm = getattr(backbone, "norm", None)
                if isinstance(norm, nn.Module):
                    norm.requires_grad_(requires_grad=False)
            case "map":
                heads = getattr(backbone.config, "heads", max(1, width // 64))
                self.attn_pool = build_attention_pool(width, heads)
            case "cls":
                pass
            case _:
                assert_never(pooling)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        initialize(self.head, "truncated_normal")
        nn.init.trunc_normal_(self.head.weight, std=_SMALL)

    def forward(self, images: Tensor, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalized images → (B, C) float32 logits and (B, D) pooled features.

        Args:
            images: Normalized pixels.
            kept: The patches that are seen; None: all.
        """
        pooled = self.fc_norm(self._pool(images, kept))
        return self.head(self.dropout(pooled)).float(), pooled

    def _pool(self, images: Tensor, kept: Kept | None) -> Tensor:
        if self.pooling == "mean":
            return _patches_before_norm(self.backbone, images, kept).mean(dim=1)
        features = self._features(images, kept)
        return features.cls if self.pooling == "cls" else self.attn_pool(features.patches)

    def _features(self, images: Tensor, kept: Kept | None) -> Features:
        if kept is None:  # of any backbone
            return self.backbone(images)
        assert isinstance(self.backbone, TokenBackbone)
        return self.backbone.encode(*_embed(self.backbone, images, kept))


def _embed(
    backbone: TokenBackbone, images: Tensor, kept: Kept | None
) -> tuple[Tensor, tuple[int, int] | None]:
    """(B, K, D) tokens of the patches that are seen, and their grid if these are all."""
    if kept is None:
        return backbone.embed(images), backbone.grid_of(images)
    assert isinstance(backbone, SparseBackbone)
    return backbone.embed_visible(images, *kept), None


def _patches_before_norm(backbone: Backbone, images: Tensor, kept: Kept | None) -> Tensor:
    """(B, N, D) patches without the backbone's last norm, which ``mean`` replaces by its own (as
    timm and MAE do).
    """
    assert isinstance(backbone, TokenBackbone)
    tokens, grid = _embed(backbone, images, kept)
    _, (last,) = backbone.encode_with_inner(tokens, (len(backbone.units()),), grid)
    return last[:, -tokens.shape[1] :]
