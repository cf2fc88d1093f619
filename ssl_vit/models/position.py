"""Position embeddings: the fixed 2-D sine-cosine table, and interpolation to another grid."""

import numpy as np
import torch
from torch import Tensor

from ssl_vit.models.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.layers import resample_abs_pos_embed  # noqa: E402 - only importable after the line above


def sincos_table(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions.

    Half of the features encode the row, half the column; in each half, sines come before cosines,
    with frequencies from 1 down to 1/10000.

    Args:
        grid: Patches (down, across).
        width: D, a multiple of 4.

    Returns:
        (1, down × across, D) float32, row-major.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, per axis; used by He et al. 2021,
        appendix A.1.
    """
    if width % 4:
        raise ValueError(f"2-D sine positions need a width that is a multiple of 4, not {width}")
    quarter = width // 4
    frequency = 10_000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (rows, columns)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Interpolate patch positions to another grid, square or not (bicubic, antialiased).

    Args:
        positions: (1, N, D) for ``old_grid``, row-major.
        old_grid, new_grid: Patches (down, across).

    Returns:
        (1, N', D); the same tensor where the grids are equal.

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.2.
    """
    if old_grid == new_grid:
        return positions
    return resample_abs_pos_embed(
        positions, new_size=list(new_grid), old_size=list(old_grid), num_prefix_tokens=0
    )
