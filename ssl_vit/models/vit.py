"""The Vision Transformer.

Parameter names are those of timm's ViT: an export loads into `timm.create_model` without changes,
and timm's weights load here. With relative positions timm's network is `Beit`, some of whose names
differ; `models/timm_names.py` translates. Parameters of objectives live elsewhere.
"""

from collections.abc import Collection
from typing import assert_never

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, SparseBackbone
from ssl_vit.models.block import Block, layer_norm
from ssl_vit.models.config import VitConfig
from ssl_vit.models.initialization import initialize, initialize_token, scale_by_depth
from ssl_vit.models.patches import blank_patches, take
from ssl_vit.models.position import resize_positions, sincos_table
from ssl_vit.models.relative_position import RelativePositionBias
from ssl_vit.models.stem import ConvStem, build_stem

# B images, N patches, K encoded patches, R registers, D width.


class VisionTransformer(SparseBackbone):
    """Dosovitskiy et al. 2020, arXiv 2010.11929, with registers (Darcet et al. 2023, arXiv
    2309.16588).

    ``pos_embed`` follows timm's two layouts: (1, 1 + N, D), class token included, without
    registers; (1, N, D), patches only, with registers. The 2-D sine-cosine table is a buffer, so no
    parameter is frozen. With relative positions (Bao et al. 2021, arXiv 2106.08254) there is none,
    but ``rel_pos_bias``: one table, or a list of one for each block. The tables of all blocks are
    kept here, outside of the blocks, so that a block is the same function for everyone who has a
    bias.
    """

    config: VitConfig  # type: ignore[assignment] - narrower than the contract's
    pos_embed: Tensor
    rel_pos_bias: RelativePositionBias | nn.ModuleList

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.patch_embed = build_stem(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self._make_positions(config)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                config.feed_forward,
                config.layer_scale,
                drop_path,
                key_bias=config.position != "relative",
            )
            for drop_path in config.drop_path_rates
        )
        self.norm = layer_norm(config.width)
        self._initialize()

    def _make_positions(self, config: VitConfig) -> None:
        rows = config.num_patches + (0 if config.registers else 1)
        num_tables = {"shared": 1, "per_block": config.depth}[config.relative_tables]
        match config.position:
            case "learned":
                self.pos_embed = nn.Parameter(torch.zeros(1, rows, config.width))
            case "sincos":
                table = sincos_table(config.grid, config.width)
                class_row = table.new_zeros(1, rows - config.num_patches, config.width)
                self.register_buffer("pos_embed", torch.cat([class_row, table], dim=1))
            case "relative":
                tables = [
                    RelativePositionBias(config.grid, config.heads) for _ in range(num_tables)
                ]
                is_shared = config.relative_tables == "shared"
                self.rel_pos_bias = tables[0] if is_shared else nn.ModuleList(tables)
            case _:
                assert_never(config.position)

    def _initialize(self) -> None:
        initialize(self, self.config.initialization)
        if self.config.initialization == "depth_scaled":
            scale_by_depth(self.blocks)
        initialize_token(self.cls_token)
        if self.config.registers:
            initialize_token(self.reg_token)
        if self.config.position == "learned":
            assert isinstance(self.pos_embed, nn.Parameter)
            initialize_token(self.pos_embed)

    def embed(
        self, images: Tensor, hidden: Tensor | None = None, filler: Tensor | None = None
    ) -> Tensor:
        """See :class:`TokenBackbone`. An overlapping stem reads pixels of neighboring patches, so
        with it hidden patches are blanked in the image first.
        """
        grid = self.grid_of(images)
        if hidden is not None and self.patch_embed.overlaps:
            images = blank_patches(images, hidden, self.config.patch_size)
        tokens = self.patch_embed(images)
        if hidden is not None and filler is not None:
            tokens = torch.where(hidden.unsqueeze(-1), filler.to(tokens.dtype), tokens)
        if self.config.position == "relative":
            return tokens
        return tokens + self._patch_positions(grid)

    def embed_visible(self, images: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
        """See :class:`SparseBackbone`. A stem that does not overlap computes these patches only."""
        if isinstance(self.patch_embed, ConvStem) or self.config.position == "relative":
            return super().embed_visible(images, hidden, visible)
        positions = self._patch_positions(self.grid_of(images)).expand(len(images), -1, -1)
        return self.patch_embed(images, visible) + take(positions, visible)

    def encode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Features:
        """Run the transformer over the class token, the registers and these patch tokens.

        Args:
            tokens: (B, K, D) from :meth:`embed`, all N or, without relative positions, any K of
                them.
            grid: Patches (down, across), if these are all N tokens.

        Raises:
            ValueError: Relative positions, and the tokens are not those of a grid.
        """
        return self.encode_with_inner(tokens, (), grid)[0]

    def encode_with_inner(
        self, tokens: Tensor, after: Collection[int], grid: tuple[int, int] | None = None
    ) -> tuple[Features, list[Tensor]]:
        """See :class:`TokenBackbone`; the inner tokens are (B, 1 + R + K, D)."""
        biases = self._biases(grid, tokens.shape[1])
        grid = grid or (1, tokens.shape[1])
        tokens = self._with_prefix(tokens)
        inner = [tokens] if 0 in after else []
        for number, (block, bias) in enumerate(zip(self.blocks, biases, strict=True), 1):
            tokens = block(tokens, bias)
            if number in after:
                inner.append(tokens)
        tokens = self.norm(tokens)
        first_patch = 1 + self.config.registers
        features = Features(tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:], grid)
        return features, inner

    def attention_bias(self, grid: tuple[int, int]) -> Tensor | None:
        """See :class:`TokenBackbone`; if every block has a table, that of the last."""
        return self._biases(grid, grid[0] * grid[1])[-1]

    def _biases(self, grid: tuple[int, int] | None, num_tokens: int) -> list[Tensor | None]:
        """(heads, 1 + N, 1 + N) for each block; a shared one is computed once."""
        depth = self.config.depth
        if self.config.position != "relative":
            return [None] * depth
        if grid is None or grid[0] * grid[1] != num_tokens:
            place = f"a grid of {grid[0]}×{grid[1]} patches" if grid else "an unknown grid"
            raise ValueError(
                f"relative positions are those of all patches of a grid, not of {num_tokens} "
                f"tokens on {place}; encode every patch, and give its grid"
            )
        if isinstance(self.rel_pos_bias, RelativePositionBias):
            return [self.rel_pos_bias(grid)] * depth
        return [table(grid) for table in self.rel_pos_bias]

    def class_attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block (Caron et al. 2021, figure 1).

        Args:
            images: As in :meth:`embed`.

        Returns:
            (B, heads, N) over patches; with class token and registers it would sum to 1.
        """
        tokens = self._with_prefix(self.embed(images))
        grid = self.grid_of(images)
        *biases, last_bias = self._biases(grid, grid[0] * grid[1])
        for block, bias in zip(self.blocks[:-1], biases, strict=True):
            tokens = block(tokens, bias)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        attention = last.attn.of_first(last.norm1(tokens), last_bias)
        return attention[..., 1 + self.config.registers :]

    def _with_prefix(self, tokens: Tensor) -> Tensor:
        """Prepend class token and registers to (B, K, D) patch tokens."""
        batch = tokens.shape[0]
        prefix = [(self.cls_token + self._class_position()).expand(batch, -1, -1)]
        if self.config.registers:
            prefix.append(self.reg_token.expand(batch, -1, -1))
        return torch.cat([*(p.to(tokens.dtype) for p in prefix), tokens], dim=1)

    def units(self) -> list[nn.Module]:
        """The transformer blocks."""
        return list(self.blocks)

    def use_channels_last(self, channels_last: bool) -> None:
        """See :class:`Backbone`; applies to the stem."""
        self.patch_embed.channels_last = channels_last

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 is the stem, positions and a table shared by
        all blocks, ``depth + 1`` the final norm.
        """
        head, _, rest = parameter_name.partition(".")
        number = rest.partition(".")[0]
        if head in ("blocks", "rel_pos_bias") and number.isdecimal():
            return int(number) + 1
        return self.config.depth + 1 if head == "norm" else 0

    def _patch_positions(self, grid: tuple[int, int]) -> Tensor:
        positions = self.pos_embed[:, -self.config.num_patches :]
        return resize_positions(positions, self.config.grid, grid)

    def _class_position(self) -> Tensor:
        """(1, 1, D) position of the class token; zeros if the table has patches only."""
        if self.config.registers or self.config.position == "relative":
            return torch.zeros_like(self.cls_token)
        return self.pos_embed[:, :1]
