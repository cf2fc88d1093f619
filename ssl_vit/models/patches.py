"""Splits images into patches, reassembles them, blanks patches, and picks some of them."""

import torch
from torch import Tensor

# B images, N patches, K of them, P pixels per side of a patch, C channels, D width.


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, C, H, W).
        patch_size: P.

    Returns:
        (B, N, P × P × C), row-major over the grid; within a patch, row-major over its pixels with
        channels last.
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


def blank_patches(images: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Set hidden patches to 0, the mean of normalized pixels.

    Args:
        images: (B, C, H, W).
        hidden: (B, N) bool, row-major over the grid.
        patch_size: P.
    """
    grid = hidden.view(
        len(images), 1, images.shape[-2] // patch_size, images.shape[-1] // patch_size
    )
    pixels = grid.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return images.masked_fill(pixels, 0.0)


def pick_patches(images: Tensor, patch_size: int, indices: Tensor) -> Tensor:
    """Cut some patches out of images, without copying the others.

    Args:
        images: (B, C, H, W).
        patch_size: P.
        indices: (B, K) int64, row-major over the grid.

    Returns:
        (B, K, C, P, P).
    """
    grid = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    across = grid.shape[4]
    image = torch.arange(len(images), device=images.device).unsqueeze(1)
    return grid[image, :, indices // across, :, indices % across]


def patchify_some(images: Tensor, patch_size: int, indices: Tensor) -> Tensor:
    """As :func:`patchify`, of some patches: (B, C, H, W) at (B, K) int64 → (B, K, P × P × C)."""
    return pick_patches(images, patch_size, indices).permute(0, 1, 3, 4, 2).flatten(2)


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Pick rows: (B, N, D) at (B, K) int64 → (B, K, D)."""
    return rows.gather(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def put(rows: Tensor, indices: Tensor, into: Tensor) -> Tensor:
    """The inverse of :func:`take`: (B, K, D) written into a copy of (B, N, D) at (B, K) int64."""
    return into.scatter(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), rows)
