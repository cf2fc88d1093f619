"""The Vision Transformer.

Parameter names are timm's: an export loads into `timm.create_model` without changes, and timm's
weights load here. Parameters of objectives live elsewhere.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, SparseBackbone
from ssl_vit.models.block import Block, layer_norm
from ssl_vit.models.config import VitConfig
from ssl_vit.models.initialization import initialize, initialize_token
from ssl_vit.models.patches import blank_patches
from ssl_vit.models.position import resize_positions, sincos_table
from ssl_vit.models.stem import build_stem

# B images, N patches, K encoded patches, R registers, D width.


class VisionTransformer(SparseBackbone):
    """Dosovitskiy et al. 2020, arXiv 2010.11929, with registers (Darcet et al. 2023, arXiv
    2309.16588).

    ``pos_embed`` follows timm's two layouts: (1, 1 + N, D), class token included, without
    registers; (1, N, D), patches only, with registers. The 2-D sine-cosine table is a buffer, so no
    parameter is frozen.
    """

    config: VitConfig  # type: ignore[assignment] - narrower than the contract's
    pos_embed: Tensor

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.patch_embed = build_stem(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        rows = config.num_patches + (0 if config.registers else 1)
        if config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, config.width))
        else:
            table = sincos_table(config.grid, config.width)
            class_row = table.new_zeros(1, rows - config.num_patches, config.width)
            self.register_buffer("pos_embed", torch.cat([class_row, table], dim=1))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                config.feed_forward,
                config.layer_scale,
                config.drop_path,
            )
            for _ in range(config.depth)
        )
        self.norm = layer_norm(config.width)
        self._initialize()

    def _initialize(self) -> None:
        initialize(self, self.config.initialization)
        initialize_token(self.cls_token)
        if self.config.registers:
            initialize_token(self.reg_token)
        if isinstance(self.pos_embed, nn.Parameter):
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
        return tokens + self._patch_positions(grid)

    def encode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Features:
        """Run the transformer over the class token, the registers and these patch tokens.

        Args:
            tokens: (B, K, D) from :meth:`embed`, all N or any K of them.
            grid: Patches (down, across), if these are all N tokens.
        """
        grid = grid or (1, tokens.shape[1])
        tokens = self._with_prefix(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        first_patch = 1 + self.config.registers
        return Features(tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:], grid)

    def class_attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block (Caron et al. 2021, figure 1).

        Args:
            images: As in :meth:`embed`.

        Returns:
            (B, heads, N) over patches; with class token and registers it would sum to 1.
        """
        tokens = self._with_prefix(self.embed(images))
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return last.attn.of_first(last.norm1(tokens))[..., 1 + self.config.registers :]

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
        """Depth of a parameter for layer-wise decay: 0 is the stem, ``depth + 1`` the final
        norm.
        """
        head, _, rest = parameter_name.partition(".")
        if head == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.config.depth + 1 if head == "norm" else 0

    def _patch_positions(self, grid: tuple[int, int]) -> Tensor:
        positions = self.pos_embed[:, -self.config.num_patches :]
        return resize_positions(positions, self.config.grid, grid)

    def _class_position(self) -> Tensor:
        """(1, 1, D) position of the class token; zeros if the table has patches only."""
        if self.config.registers:
            return torch.zeros_like(self.cls_token)
        return self.pos_embed[:, :1]


def load_timm_weights(
    model: VisionTransformer, state: Mapping[str, Tensor], grid: tuple[int, int] | None = None
) -> None:
    """Load a state dict of timm's ViT, without its classifier, and resize positions to our grid.

    Args:
        model: A model of the same width, depth, stem and registers.
        state: A ``timm.create_model(...).state_dict()``.
        grid: Grid of its positions (down, across); None: square.

    Raises:
        ValueError: Tensors are missing, left over or of a different shape; lists the first few.
    """
    weights = {
        name: value
        for name, value in state.items()
        if not name.startswith(("head.", "fc_norm.", "attn_pool."))
    }
    if "pos_embed" in weights:
        weights["pos_embed"] = fit_positions(model, weights["pos_embed"], grid)
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    left_over = [name for name in weights if name not in own]
    if wrong or left_over:
        raise ValueError(
            f"these weights do not fit the model: {len(wrong)} tensors missing or of another shape "
            f"({', '.join(wrong[:3])}), {len(left_over)} left over ({', '.join(left_over[:3])})"
        )
    model.load_state_dict(weights)


def fit_positions(
    model: VisionTransformer, positions: Tensor, grid: tuple[int, int] | None = None
) -> Tensor:
    """(1, rows, D) position embeddings, resized to the model's grid; returned unchanged if they do
    not have the given grid or the model's width.

    Args:
        model: Determines grid, width and whether the class token has a position.
        positions: The class token's row first, if the model has one.
        grid: Grid of the positions (down, across); None: square.
    """
    prefix = 0 if model.config.registers else 1
    patches = positions[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    grid = grid or (side, side)
    if grid[0] * grid[1] != patches.shape[1] or patches.shape[-1] != model.config.width:
        return positions
    resized = resize_positions(patches, grid, model.config.grid)
    return torch.cat([positions[:, :prefix], resized], dim=1)
