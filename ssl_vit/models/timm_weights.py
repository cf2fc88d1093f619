"""Weights of timm's ViT and Beit, in both directions, and positions of another grid.

Our names are those of timm's ViT. timm's Beit, the network with relative positions, has other names
for LayerScale, SwiGLU's gate, the biases of queries and values and the tables of blocks; only with
relative positions is anything renamed.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_vit.models.config import VitConfig
from ssl_vit.models.position import resize_positions
from ssl_vit.models.relative_position import NUM_CLASS_ROWS, num_rows, resize_table
from ssl_vit.models.vit import VisionTransformer

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"rel_pos_bias.{_TABLE}"
POSITIONS = ("pos_embed", _TABLE)
"""Last part of the names of tensors whose shape depends on the grid."""

# Ours → timm's Beit's, and back.
_TO_BEIT = (
    (r"^rel_pos_bias\.(\d+)\.", r"blocks.\1.attn."),
    (r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"^(blocks\.\d+\.attn)\.qkv\.([qv]_bias)$", r"\1.\2"),
)
_FROM_BEIT = (
    (rf"^blocks\.(\d+)\.attn\.({_TABLE})$", r"rel_pos_bias.\1.\2"),
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+\.attn)\.([qv]_bias)$", r"\1.qkv.\2"),
)
# Not part of a backbone: classifiers, and what older versions of timm kept of the grid.
_LEFT_OUT = re.compile(r"^(head|fc_norm|attn_pool)\.|(^|\.)relative_position_index$")
_MOST_NAMES = 20


def to_timm(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """The state dict of a backbone with the names of timm's ViT, or, with relative positions, of
    timm's Beit with ``use_abs_pos_emb=False``, ``use_fc_norm=False`` and, by
    ``relative_tables``, ``use_shared_rel_pos_bias`` or ``use_rel_pos_bias``.
    """
    if config.position != "relative":
        return dict(state)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        gate = re.fullmatch(r"(.*\.mlp\.fc1)\.(weight|bias)", name)
        if gate and config.feed_forward == "swiglu":
            halves = zip(("g", "x"), value.chunk(2), strict=True)
            # Copies, because safetensors rejects tensors that share memory.
            found |= {f"{gate[1]}_{letter}.{gate[2]}": half.clone() for letter, half in halves}
        else:
            found[_renamed(name, _TO_BEIT)] = value
    return found


def from_timm(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """The inverse of :func:`to_timm`, for a backbone of this config; our own names stay.

    A shared table becomes one in every block if the config says so. Classifiers are left out. A
    Beit whose only norm comes after its mean over patches (``fc_norm``, timm's default) gets it as
    its final norm; the norm of a mean is then the mean of norms, which is close, but not the same.
    """
    found = {name: value for name, value in state.items() if not _LEFT_OUT.search(name)}
    if config.position != "relative":
        return found
    if not any(name.startswith("norm.") for name in state):
        found |= {
            name.removeprefix("fc_"): value
            for name, value in state.items()
            if name.startswith("fc_norm.")
        }
    found = {_renamed(name, _FROM_BEIT): value for name, value in found.items()}
    for name in [name for name in found if ".mlp.fc1_g." in name]:
        gate, value = name, name.replace("fc1_g", "fc1_x")
        if value in found:
            halves = [found.pop(gate), found.pop(value)]
            found[name.replace("fc1_g", "fc1")] = torch.cat(halves)
    if config.relative_tables == "per_block" and _SHARED_TABLE in found:
        shared = found.pop(_SHARED_TABLE)
        found |= {f"rel_pos_bias.{block}.{_TABLE}": shared for block in range(config.depth)}
    return found


def source_of(name: str, theirs: VitConfig) -> str:
    """The name under which the weights of a backbone with config ``theirs`` have the tensor
    ``name``, which may have the name of its owner in front: a table of a block may be taken from a
    shared one.
    """
    if theirs.relative_tables == "shared":
        return re.sub(rf"(^|\.)rel_pos_bias\.\d+\.{_TABLE}$", rf"\1{_SHARED_TABLE}", name)
    return name


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


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _listed(names: list[str]) -> str:
    more: list[Any] = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join(names[:_MOST_NAMES] + more)
