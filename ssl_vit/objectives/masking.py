"""Which patches are hidden, and moving between all patches and some of them."""

import numpy as np
import torch
from torch import Tensor

# B images, N patches, K visible, M hidden = N − K, D width, P pixels a side of a patch.


def random_hidden(num_patches: int, num_hidden: int, rng: np.random.Generator) -> np.ndarray:
    """Hide an exact number of patches, each set equally likely.

    Args:
        num_patches: N.
        num_hidden: In [0, N].
        rng: The sample's randomness.

    Returns:
        (N,) bool, true where hidden.

    Source: He et al. 2021, arXiv 2111.06377, section 3, "Masking".
    """
    noise = rng.random(num_patches)
    hidden = np.zeros(num_patches, dtype=bool)
    hidden[np.argpartition(noise, num_hidden - 1)[:num_hidden]] = True
    return hidden


def visible_and_hidden(hidden: Tensor, num_hidden: int) -> tuple[Tensor, Tensor]:
    """Split patch indices in two, each in row-major order.

    Args:
        hidden: (B, N) bool with exactly ``num_hidden`` true in every row.
        num_hidden: M; given, so that shapes do not depend on the data.

    Returns:
        (B, K) and (B, M) int64 patch indices.
    """
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = hidden.shape[1] - num_hidden
    return order[:, :num_visible], order[:, num_visible:]


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Pick rows: (B, N, D) at (B, K) int64 → (B, K, D)."""
    return rows.gather(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def put(rows: Tensor, indices: Tensor, into: Tensor) -> Tensor:
    """The inverse of :func:`take`: (B, K, D) written into a copy of (B, N, D) at (B, K) int64."""
    return into.scatter(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), rows)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, C, H, W).
        patch_size: P.

    Returns:
        (B, N, P × P × C), row-major over the grid, and inside a patch over its pixels with channels
        last.
    """
    batch, channels, height, width = images.shape
    grid = images.view(
        batch, channels, height // patch_size, patch_size, width // patch_size, patch_size
    )
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P × P × C) → (B, C, H, W)."""
    batch = patches.shape[0]
    cells = patches.view(batch, grid[0], grid[1], patch_size, patch_size, -1)
    images = cells.permute(0, 5, 1, 3, 2, 4)
    return images.reshape(batch, -1, grid[0] * patch_size, grid[1] * patch_size)
