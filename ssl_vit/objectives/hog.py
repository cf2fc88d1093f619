"""Histograms of oriented gradients (HOG): features of patches that are computed, not learned.

Dalal & Triggs 2005, "Histograms of Oriented Gradients for Human Detection", CVPR, with the
choices of MaskFeat (Wei et al. 2021, arXiv 2112.09133): every color channel has its own
histograms, a pixel votes for one orientation only, and each histogram is normalized by itself
rather than in overlapping blocks. Unlike in MaskFeat's code, as mmpretrain carries it, gradients
are plain differences (not smoothed by a Sobel filter) and all pixels of a cell count alike (no
Gaussian window), which is how scikit-image defines HOG.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.patches import patchify
from ssl_vit.objectives.autocast import without_autocast

# B images, N patches, P pixels per side of a patch, C channels.

ORIENTATIONS = 9  # over 180 degrees: a gradient and its opposite count as one
CELLS = 2  # per side of a patch


def hog_size(channels: int) -> int:
    """How many numbers describe a patch: 108 for three channels."""
    return CELLS**2 * channels * ORIENTATIONS


@torch.no_grad()
def hog(images: Tensor, patch_size: int) -> Tensor:
    """The histograms of every patch, which is cut into 2 × 2 cells.

    Any positive scale and any shift of a channel leave them as they are: both drop out of a
    normalized histogram of differences. So images may be pixels or normalized.

    Args:
        images: (B, C, H, W), at least 2 × 2 pixels.
        patch_size: P, even.

    Returns:
        (B, N, 2 × 2 × C × 9) float32 in [0, 1], row-major over the grid of patches; within a patch,
        row-major over its cells. The 9 numbers of a cell and channel have norm 1, or are all 0
        where the channel is constant.

    Source: Dalal & Triggs 2005; Wei et al. 2021, arXiv 2112.09133.
    """
    histograms = cell_histograms(images, patch_size // CELLS)
    return patchify(F.normalize(histograms, dim=2).flatten(1, 2), CELLS)


def cell_histograms(images: Tensor, cell_size: int) -> Tensor:
    """Mean gradient magnitude in a cell, by orientation.

    Args:
        images: (B, C, H, W).
        cell_size: Pixels per side of a cell.

    Returns:
        (B, C, 9, H / cell, W / cell) float32; number k is that of gradients at [20 k, 20 (k + 1))
        degrees from left-to-right toward downward, or opposite to these.
    """
    # In float32 also under autocast: near the limit of two bins, rounding moves a pixel's vote.
    with without_autocast(images):
        across, down = gradients(images.float())
        # The opposite of every gradient that points up, or exactly left: angles are in [0, 180).
        is_opposite = (down < 0) | ((down == 0) & (across < 0))
        angles = torch.atan2(down.abs(), torch.where(is_opposite, -across, across))
        # An angle just below 180 degrees may round to 180.
        bins = (angles * (ORIENTATIONS / math.pi)).floor().clamp(max=ORIENTATIONS - 1)
        magnitudes = torch.hypot(across, down)
        # A pass per bin, because scatter_add on a GPU adds in a different order every time.
        votes = (torch.where(bins == k, magnitudes, 0.0) for k in range(ORIENTATIONS))
        return torch.stack([F.avg_pool2d(each, cell_size) for each in votes], dim=2)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of the two neighbors, left to right and top to bottom; 0 at the image's border,
    where one is missing. (Dalal & Triggs 2005 found no filter that is better.)

    Args:
        images: (B, C, H, W), at least 2 × 2 pixels.

    Returns:
        Two tensors, (B, C, H, W).
    """
    across = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
    down = F.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
    return across, down


def hog_glyphs(features: Tensor, patch_size: int) -> Tensor:
    """Histograms as pictures: in each cell a line for each orientation, along the edge (at right
    angles to the gradient), as bright as its number, averaged over the channels.
    Predictions are the fainter, the less certain.

    Args:
        features: (B, N, 2 × 2 × C × 9) from :func:`hog`, or a prediction of them.
        patch_size: P.

    Returns:
        (B, N, 2P × 2P) float32 in [0, 1], twice the patch's size, so that lines can be told apart.
    """
    cells = features.float().unflatten(2, (CELLS, CELLS, -1, ORIENTATIONS)).mean(dim=4)
    # What all orientations share says nothing about direction and would draw a star.
    cells = (cells - cells.amin(dim=-1, keepdim=True)).clamp(0, 1)
    lines = _lines(patch_size).to(cells.device)
    pictures = torch.einsum("bnrco,oyx->bnrycx", cells, lines)
    return pictures.clamp(0, 1).flatten(2)


def _lines(size: int) -> Tensor:
    """(9, size, size) float32: a line through the middle of a cell for each orientation."""
    places = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    down, across = torch.meshgrid(places, places, indexing="ij")
    angles = (torch.arange(ORIENTATIONS) + 0.5) * (math.pi / ORIENTATIONS)
    normal = torch.stack([angles.cos(), angles.sin()])
    distances = (across[..., None] * normal[0] + down[..., None] * normal[1]).abs()
    is_inside = (across.square() + down.square()).sqrt() < size / 2
    return ((1.5 - distances).clamp(0, 1) * is_inside[..., None]).permute(2, 0, 1)
