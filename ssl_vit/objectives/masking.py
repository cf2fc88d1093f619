"""Draws the hidden patches of an image, and lists them."""

import math

import numpy as np
import torch
from torch import Tensor

# B images, N patches, K visible, M hidden = N − K, D width.

_FLATTEST = 0.3  # height over width of the flattest rectangle; the tallest is the inverse
_TRIES = 10


def random_hidden(num_patches: int, num_hidden: int, rng: np.random.Generator) -> np.ndarray:
    """Hide an exact number of patches, each set equally likely.

    Args:
        num_patches: N.
        num_hidden: In [0, N].
        rng: The sample's random generator.

    Returns:
        (N,) bool, true where hidden.

    Source: He et al. 2021, arXiv 2111.06377, section 3, "Masking".
    """
    noise = rng.random(num_patches)
    hidden = np.zeros(num_patches, dtype=bool)
    hidden[np.argpartition(noise, num_hidden - 1)[:num_hidden]] = True
    return hidden


def block_hidden(
    grid: tuple[int, int], num_hidden: int, rng: np.random.Generator, least: int = 4
) -> np.ndarray:
    """Hide an exact number of patches, in rectangles.

    Rectangles of random area and shape are hidden one after another; one that would exceed the
    remaining count is redrawn. After several failed tries the rest is filled with single patches,
    so that the count is exact (public implementations fall short of it).

    Args:
        grid: Patches (down, across).
        num_hidden: M, in [0, N].
        rng: The sample's random generator.
        least: Number of patches in the smallest rectangle.

    Returns:
        (N,) bool, true where hidden.

    Source: Bao et al. 2021 (BEiT), arXiv 2106.08254, section 2.3 and algorithm 1; aspect
        ratios from 0.3 to 1/0.3, as there.
    """
    down, across = grid
    hidden = np.zeros(grid, dtype=bool)
    low, high = math.log(_FLATTEST), -math.log(_FLATTEST)
    tries, left = 0, num_hidden
    while left >= least and tries < _TRIES:
        tries += 1
        area = least + (left - least) * rng.random()
        ratio = math.exp(low + (high - low) * rng.random())
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        top, beside = rng.random(), rng.random()
        if not (0 < height <= down and 0 < width <= across):
            continue
        top, beside = int(top * (down - height + 1)), int(beside * (across - width + 1))
        block = hidden[top : top + height, beside : beside + width]
        new = block.size - int(block.sum())
        if 0 < new <= left:
            block[:] = True
            left -= new
            tries = 0
    flat = hidden.reshape(-1)
    if left:
        flat[np.flatnonzero(~flat)[random_hidden(len(flat) - num_hidden + left, left, rng)]] = True
    return flat


def visible_and_hidden(hidden: Tensor, num_hidden: int) -> tuple[Tensor, Tensor]:
    """Split patch indices into visible and hidden ones, each in row-major order.

    Args:
        hidden: (B, N) bool with exactly ``num_hidden`` true in every row.
        num_hidden: M; an argument, so that shapes do not depend on the data.

    Returns:
        (B, K) and (B, M) int64 patch indices.
    """
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = hidden.shape[1] - num_hidden
    return order[:, :num_visible], order[:, num_visible:]
