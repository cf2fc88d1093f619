"""Patch aggregation of BEiT v2: a second prediction through the class token."""

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, TokenBackbone
from ssl_vit.models.block import Block
from ssl_vit.models.config import VitConfig
from ssl_vit.models.initialization import initialize, scale_by_depth
from ssl_vit.objectives.beit.config import BeitConfig

# B images, N patches, D width.


class PatchAggregation(nn.Module):
    """Blocks over the last class token and the patches of an earlier block. To predict from both,
    the class token has to carry what the patches of that block lack.

    Norm, head and relative positions are those of the backbone.

    Args:
        config: After which block the patches are taken, and the number of blocks here.
        backbone: The backbone whose tokens these are.

    Source: Peng et al. 2022, arXiv 2208.06366, "Pretraining global representation".
    """

    def __init__(self, config: BeitConfig, backbone: TokenBackbone) -> None:
        super().__init__()
        sizes = backbone.config
        assert isinstance(sizes, VitConfig)
        self.after, self.depth = config.aggregate_after, sizes.depth
        self.blocks = nn.ModuleList(
            Block(
                sizes.width,
                sizes.heads,
                sizes.mlp_ratio,
                sizes.feed_forward,
                sizes.layer_scale,
                rate,
                key_bias=sizes.position != "relative",
            )
            for rate in self._drop_path_rates(config, sizes)
        )
        # As if they followed the block that the patches are taken from.
        initialize(self, sizes.initialization)
        if sizes.initialization == "depth_scaled":
            scale_by_depth(self.blocks, first_layer=self.after + 1)

    @staticmethod
    def _drop_path_rates(config: BeitConfig, sizes: VitConfig) -> tuple[float, ...]:
        """As if the blocks followed the one that the patches are taken from."""
        after, end = config.aggregate_after, config.aggregate_after + config.aggregate_depth
        return sizes.model_copy(update={"depth": max(sizes.depth, end)}).drop_path_rates[after:end]

    def forward(
        self, backbone: TokenBackbone, images: Tensor, hidden: Tensor, filler: Tensor
    ) -> tuple[Features, Tensor]:
        """The backbone's features, and (B, N, D) those of the patches after these blocks.

        Args:
            backbone: That of the constructor.
            images: (B, 3, H, W) normalized.
            hidden: (B, N) bool, true where a patch is hidden.
            filler: (D,), in place of hidden patches.
        """
        grid = backbone.grid_of(images)
        tokens = backbone.embed(images, hidden, filler)
        features, (inner, last) = backbone.encode_with_inner(tokens, (self.after, self.depth), grid)
        both = torch.cat([last[:, :1], inner[:, -tokens.shape[1] :]], dim=1)
        bias = backbone.attention_bias(grid)
        for block in self.blocks:
            both = block(both, bias)
        norm: nn.Module = backbone.get_submodule("norm")
        return features, norm(both)[:, 1:]
