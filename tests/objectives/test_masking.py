"""Masks: exact counts and uniform probability; and selecting patches without losing any."""

from decimal import Decimal
from itertools import combinations
from math import floor

import numpy as np
import pytest
import torch

from ssl_vit.models.patches import patchify, put, take, unpatchify
from ssl_vit.objectives.masking import block_hidden, random_hidden, visible_and_hidden
from ssl_vit.objectives.one_crop.config import num_hidden_patches

RATIOS = ["0.1", "0.25", "0.4", "0.5", "0.6", "0.7", "0.75", "0.8", "0.9", "0.95"]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("num_patches", [16, 49, 100, 144, 196, 256, 400])
def test_the_seen_share_is_rounded_down_in_exact_arithmetic(num_patches: int, ratio: str) -> None:
    visible = max(1, floor(num_patches * (1 - Decimal(ratio))))
    assert num_hidden_patches(num_patches, float(ratio)) == num_patches - visible


@pytest.mark.parametrize(("ratio", "hidden"), [(0.001, 1), (0.999, 3)])
def test_one_patch_is_always_hidden_and_one_seen(ratio: float, hidden: int) -> None:
    assert num_hidden_patches(4, ratio) == hidden


def test_every_mask_hides_exactly_the_requested_number() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        for num_hidden in (0, 1, 12, 15, 16):
            hidden = random_hidden(16, num_hidden, rng)
            assert hidden.shape == (16,)
            assert hidden.dtype == bool
            assert hidden.sum() == num_hidden


def test_every_set_of_patches_is_equally_likely() -> None:
    draws, rng = 4000, np.random.default_rng(0)
    counts = {frozenset(pair): 0 for pair in combinations(range(5), 2)}
    for _ in range(draws):
        counts[frozenset(np.flatnonzero(random_hidden(5, 2, rng)).tolist())] += 1
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 27.9  # one in a thousand for 9 degrees of freedom


def test_no_place_of_a_large_grid_is_favoured() -> None:
    draws, rng = 1000, np.random.default_rng(1)
    times = sum(random_hidden(196, 147, rng).astype(int) for _ in range(draws))
    spread = np.sqrt(draws * 0.75 * 0.25)
    assert np.abs(times - 0.75 * draws).max() < 4.5 * spread


def test_indices_of_both_parts_are_in_order_and_miss_none() -> None:
    hidden = torch.tensor([[True, False, True, False, True], [False, True, True, True, False]])
    visible_indices, hidden_indices = visible_and_hidden(hidden, 3)
    assert visible_indices.tolist() == [[1, 3], [0, 4]]
    assert hidden_indices.tolist() == [[0, 2, 4], [1, 2, 3]]


def test_put_undoes_take() -> None:
    rows = torch.randn(2, 5, 3)
    indices = torch.tensor([[4, 0], [2, 3]])
    taken = take(rows, indices)
    assert torch.equal(taken, torch.stack([rows[0, [4, 0]], rows[1, [2, 3]]]))

    blank = torch.zeros_like(rows)
    back = put(taken, indices, into=blank)

    assert torch.equal(take(back, indices), taken)
    assert not back[0, [1, 2, 3]].any()
    assert not back[1, [0, 1, 4]].any()
    assert not blank.any()  # into a copy


def test_patches_hold_their_pixels_row_by_row_with_channels_last() -> None:
    images = torch.randn(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            cell = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            for y in range(2):
                for x in range(2):
                    values = patches[:, 3 * row + column, 3 * (2 * y + x) : 3 * (2 * y + x) + 3]
                    assert torch.equal(values, cell[:, :, y, x])


@pytest.mark.parametrize("grid", [(2, 2), (2, 5), (3, 1)])
def test_unpatchify_undoes_patchify(grid: tuple[int, int]) -> None:
    images = torch.randn(2, 3, grid[0] * 4, grid[1] * 4)
    assert torch.equal(unpatchify(patchify(images, 4), 4, grid), images)


@pytest.mark.parametrize("num_hidden", [0, 1, 3, 20, 63, 64])
def test_block_masks_have_exactly_the_requested_count(num_hidden: int):
    rng = np.random.Generator(np.random.Philox(1))
    for _ in range(200):
        assert block_hidden((8, 8), num_hidden, rng).sum() == num_hidden


def test_block_masks_are_rectangles_for_the_most_part():
    rng = np.random.Generator(np.random.Philox(1))

    def neighbors(hidden: np.ndarray) -> float:
        grid = hidden.reshape(14, 14)
        return (grid[1:] & grid[:-1]).sum() + (grid[:, 1:] & grid[:, :-1]).sum()

    blocks = np.mean([neighbors(block_hidden((14, 14), 60, rng)) for _ in range(200)])
    singles = np.mean([neighbors(random_hidden(196, 60, rng)) for _ in range(200)])
    assert blocks > 2 * singles
    # Every patch is hidden sometimes.
    assert np.sum([block_hidden((14, 14), 60, rng) for _ in range(400)], axis=0).min() > 5
