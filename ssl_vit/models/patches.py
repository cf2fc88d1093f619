"""Splits images into patches of pixels, reassembles them, and blanks patches."""

from torch import Tensor

# B images, N patches, P pixels per side of a patch, C channels.


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
