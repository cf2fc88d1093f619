"""The sine-cosine table against a loop over Vaswani et al.'s formula; properties of resizing."""

import math

import numpy as np
import pytest
import torch

from ssl_vit.models.position import resize_positions, sincos_table


def vaswani(grid: tuple[int, int], width: int) -> np.ndarray:
    """(down × across, D) float64: PE(p, 2i) = sin(p / 10000^(2i/d)), cosine for odd ones.

    Each axis has d = D/2 features; all sines of an axis come before its cosines.
    """
    d = width // 2
    table = np.empty((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for axis, place in enumerate((row, column)):
                for i in range(d // 2):
                    angle = place / 10000 ** (2 * i / d)
                    patch = row * grid[1] + column
                    table[patch, axis * d + i] = math.sin(angle)
                    table[patch, axis * d + d // 2 + i] = math.cos(angle)
    return table


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (14, 14)])
def test_the_sine_table_is_vaswanis_formula_on_each_axis(grid: tuple[int, int]) -> None:
    table = sincos_table(grid, 32)
    assert table.shape == (1, grid[0] * grid[1], 32)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table[0].numpy(), vaswani(grid, 32), atol=1e-7)


def test_every_place_has_a_row_of_its_own() -> None:
    table = sincos_table((14, 14), 64)[0]
    distances = torch.cdist(table, table) + torch.eye(196) * 10
    assert distances.min() > 0.1


def test_a_width_that_two_axes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 30"):
        sincos_table((2, 2), 30)


def test_resizing_to_the_same_grid_returns_the_same_tensor() -> None:
    positions = torch.randn(1, 15, 8)
    assert resize_positions(positions, (3, 5), (3, 5)) is positions


@pytest.mark.parametrize("new", [(2, 2), (8, 8), (3, 7)])
def test_resizing_keeps_a_constant_constant(new: tuple[int, int]) -> None:
    positions = torch.full((1, 16, 8), 0.7)
    resized = resize_positions(positions, (4, 4), new)
    torch.testing.assert_close(resized, torch.full((1, new[0] * new[1], 8), 0.7))


def test_resizing_keeps_rows_rows_and_columns_columns() -> None:
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    positions = torch.stack([row, column], dim=-1).view(1, 24, 2)

    resized = resize_positions(positions, (4, 6), (8, 9)).view(8, 9, 2)

    torch.testing.assert_close(resized[..., 0], resized[:, :1, 0].expand(8, 9))
    torch.testing.assert_close(resized[..., 1], resized[:1, :, 1].expand(8, 9))
    assert (resized[1:, 0, 0] > resized[:-1, 0, 0]).all()
    assert (resized[0, 1:, 1] > resized[0, :-1, 1]).all()
