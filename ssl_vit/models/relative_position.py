"""Relative position bias: a learned number per head and offset between two tokens, which is added
to attention scores in place of absolute positions.

Nothing here indexes: the bias of a grid is a sliding window over its table. So it needs no buffer
of (1 + N)² indices, and follows from the table alone, as the count of what a network costs assumes.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

# N patches, h × w of them, G heads.

# Class token → patch, patch → class token, class token → itself.
NUM_CLASS_ROWS = 3


def num_rows(grid: tuple[int, int]) -> int:
    """Rows of a table: the offsets between patches of a grid (down, across), and three of the class
    token.
    """
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLASS_ROWS


class RelativePositionBias(nn.Module):
    """A table of biases, zero at the start.

    Args:
        grid: Patches (down, across) whose offsets the table has.
        heads: G.

    Source: Bao et al. 2021 (BEiT), arXiv 2106.08254; Raffel et al. 2020
        (T5), arXiv 1910.10683, section 2.1. The layout and the name of the table are timm's.
    """

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows(grid), heads))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(G, 1 + N, 1 + N) bias for the tokens of any grid: [of queries, of keys]; the class token
        is first.
        """
        table = resize_table(self.relative_position_bias_table, self.grid, grid)
        return bias_of_table(table, grid)


def bias_of_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The bias of every pair of tokens.

    Args:
        table: ((2h − 1)(2w − 1) + 3, G). Row-major over the offsets of a query from a key, first
            (1 − h, 1 − w); then class token → patch, patch → class token, class token → itself.
        grid: (h, w).

    Returns:
        (G, 1 + N, 1 + N), [query, key]; the class token is first.
    """
    (height, width), heads = grid, table.shape[1]
    offsets = table[:-NUM_CLASS_ROWS].view(2 * height - 1, 2 * width - 1, heads)
    # windows[i, j, :, k, l] is the offset (i + k, j + l) from the first; a query in row i is at
    # i − row + h − 1 from a key in `row`, so the keys are in reverse.
    windows = offsets.unfold(0, height, 1).unfold(1, width, 1).flip(3, 4)
    patches = windows.permute(2, 0, 1, 3, 4).reshape(heads, height * width, height * width)
    to_patch, to_class, itself = table[-NUM_CLASS_ROWS:].view(NUM_CLASS_ROWS, heads, 1, 1).unbind()
    of_class = torch.cat([itself, to_patch.expand(-1, -1, height * width)], dim=2)
    of_patches = torch.cat([to_class.expand(-1, height * width, -1), patches], dim=2)
    return torch.cat([of_class, of_patches], dim=1)


def resize_table(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Interpolate a table to another grid, square or not; differentiable.

    As timm's ``resize_rel_pos_bias_table`` does: linear between offsets that are spaced by a
    geometric progression, so that near offsets keep their biases and far ones are stretched (or, on
    a smaller grid, left out). If one side of the grid changes, the other is stretched too, by 1 %.

    Args:
        table: ((2h − 1)(2w − 1) + 3, G) of ``old_grid``.
        old_grid, new_grid: Patches (down, across).

    Returns:
        ((2h' − 1)(2w' − 1) + 3, G); the same tensor where the grids are equal.
    """
    if old_grid == new_grid:
        return table
    sides = [(2 * old - 1, 2 * new - 1) for old, new in zip(old_grid, new_grid, strict=True)]
    (height, new_height), (width, new_width) = sides
    # Positions are not to be rounded by autocast.
    with torch.autocast(table.device.type, enabled=False):
        down, across = (table.new_tensor(_interpolation(*side)) for side in sides)
        offsets = table[:-NUM_CLASS_ROWS].view(height, -1)
        offsets = (down @ offsets).view(new_height, width, -1).transpose(0, 1)
        offsets = (across @ offsets.reshape(width, -1)).view(new_width, new_height, -1)
        offsets = offsets.transpose(0, 1).reshape(new_height * new_width, -1)
        return torch.cat([offsets, table[-NUM_CLASS_ROWS:]])


@cache
def _interpolation(old: int, new: int) -> list[list[float]]:
    """The weights (new, old) of ``old`` stored offsets along one side, an odd number, in each of
    ``new`` offsets.
    """
    stored = _geometric_offsets(old // 2, new // 2)
    wanted = np.arange(-(new // 2), new // 2 + 1)
    weights = [np.interp(wanted, stored, one) for one in np.eye(old)]
    return np.stack(weights, axis=1).tolist()


def _geometric_offsets(count: int, farthest: int) -> np.ndarray:
    """Places of the offsets −count … count: sums of a geometric progression that begins with 1 and
    whose ratio, in [1.01, 1.5], takes the last one to ``farthest``.
    """
    low, high = 1.01, 1.5
    ratio = (low + high) / 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > farthest:
            high = ratio
        else:
            low = ratio
    places = np.cumsum(ratio ** np.arange(count))
    return np.concatenate([-places[::-1], [0.0], places])
