"""Loads weights of timm's ViT and Beit, and fits positions to another grid."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_vit.models.config import VitConfig
from ssl_vit.models.position import resize_positions
from ssl_vit.models.relative_position import NUM_CLASS_ROWS, num_rows, resize_table
from ssl_vit.models.timm_names import from_timm
from ssl_vit.models.vit import VisionTransformer

POSITIONS = ("pos_embed", "relative_position_bias_table")
"""Last part of the names of tensors whose shape depends on the grid."""

_MOST_NAMES = 20


def load_timm_weights(
    model: VisionTransformer, state: Mapping[str, Tensor], grid: tuple[int, int] | None = None
) -> None:
    """Load a state dict of timm's ViT or Beit, without its classifier, and resize positions to our
    grid; see :func:`from_timm`.

    Args:
        model: A model of the same width, depth, stem, registers and kind of positions.
        state: A ``timm.create_model(...).state_dict()``.
        grid: Grid of its positions (down, across); None: square.

    Raises:
        ValueError: Tensors are missing, left over or of a different shape; names them.
    """
    weights = {
        name: fit_positions(model, name, value, grid)
        for name, value in from_timm(state, model.config).items()
    }
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    left_over = [name for name in weights if name not in own]
    if wrong or left_over:
        raise ValueError(
            f"these weights do not fit the model: {len(wrong)} tensors missing or of another shape "
            f"({_listed(wrong)}), {len(left_over)} left over ({_listed(left_over)})"
        )
    model.load_state_dict(weights)


def fit_positions(
    model: VisionTransformer, name: str, values: Tensor, grid: tuple[int, int] | None = None
) -> Tensor:
    """Position embeddings or a table of relative positions, resized to the model's grid; returned
    unchanged if they do not have the given grid or the model's width or heads, or are something
    else.

    Args:
        model: Determines grid, width, heads and whether the class token has a position.
        name: Name of the tensor, perhaps with that of its owner in front.
        values: (1, rows, D), the class token's row first, if the model has one; or (rows, heads).
        grid: Grid of the positions (down, across); None: square.
    """
    match name.rpartition(".")[2]:
        case "pos_embed":
            return _fit_embeddings(model.config, values, grid)
        case "relative_position_bias_table":
            return _fit_table(model.config, values, grid)
    return values


def _fit_embeddings(config: VitConfig, positions: Tensor, grid: tuple[int, int] | None) -> Tensor:
    prefix = 0 if config.registers else 1
    if grid and positions.shape[1] == grid[0] * grid[1]:
        prefix = 0  # of patches only, such as a tokenizer's decoder has
    patches = positions[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    grid = grid or (side, side)
    if grid[0] * grid[1] != patches.shape[1] or patches.shape[-1] != config.width:
        return positions
    resized = resize_positions(patches, grid, config.grid)
    return torch.cat([positions[:, :prefix], resized], dim=1)


def _fit_table(config: VitConfig, table: Tensor, grid: tuple[int, int] | None) -> Tensor:
    side = (round(max(0, len(table) - NUM_CLASS_ROWS) ** 0.5) + 1) // 2
    grid = grid or (side, side)
    if len(table) != num_rows(grid) or table.shape[1:] != (config.heads,):
        return table
    return resize_table(table, grid, config.grid)


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join(names[:_MOST_NAMES] + more)
