"""Pictures for the log: reconstructions, patch features as colors, and attention maps.

Every picture has one row per image; its cells have a white frame.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.patches import blank_patches, patchify, put, unpatchify
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.pixels import PixelScale

# B images, N patches of a (down, across) grid, M hidden, D width, P pixels per side of a patch.

FRAME = 2  # white pixels around each picture


def reconstruction_panels(
    backbone: Backbone,
    pixel_scale: PixelScale,
    images: Tensor,
    hidden: Tensor,
    predicted: Tensor,
) -> dict[str, Tensor]:
    """`reconstruction`: original | visible patches | reconstruction.

    Args:
        backbone: The backbone, in evaluation mode.
        pixel_scale: Normalization of the images.
        images: (B, 3, H, W) normalized.
        hidden: (B, N) bool, M true in every row.
        predicted: (B, M, P × P × 3) pixels of the hidden patches, row-major, normalized.
    """
    size = backbone.config.stride
    _, places = visible_and_hidden(hidden, predicted.shape[1])
    filled = put(predicted, places, into=patchify(images, size))
    rebuilt = unpatchify(filled, size, backbone.grid_of(images))
    seen = blank_patches(images, hidden, size)
    columns = [pixel_scale.back(x) for x in (images, seen, rebuilt)]
    return {"reconstruction": rows_of(columns)}


def feature_panels(
    backbone: Backbone, pixel_scale: PixelScale, images: Tensor
) -> dict[str, Tensor]:
    """`patch_features`: each image next to the first three principal components of its patch
    features as colors; `attention`, if there is a class token: next to its attention in the last
    block, one map per head.

    Args:
        backbone: The backbone, in evaluation mode.
        pixel_scale: Normalization of the images.
        images: (B, 3, H, W) normalized.

    Returns:
        Name → (3, height, width) uint8.
    """
    pixels = pixel_scale.back(images)
    # Not `backbone(images)`: at ZeRO-3 that releases parameters that are needed below, as does any
    # forward pass before this panel.
    features = backbone.forward(images)
    grid = features.grid
    panels = {
        "patch_features": rows_of([pixels, picture_of(principal_colors(features.patches), grid)])
    }
    looks = backbone.class_attention(images)
    if looks is not None:
        # Each head relative to its own maximum: a few patches get most of the attention.
        looks = looks / looks.amax(dim=2, keepdim=True).clamp(min=torch.finfo(looks.dtype).tiny)
        gray = looks.unsqueeze(-1).expand(-1, -1, -1, 3)
        heads = [picture_of(head, grid) for head in gray.unbind(1)]
        panels["attention"] = rows_of([pixels, *heads])
    return panels


def principal_colors(patches: Tensor) -> Tensor:
    """The first three principal components over the patches of all images together, each scaled to
    [0, 1], so that colors are comparable between images (Oquab et al. 2023, figure 1).

    Args:
        patches: (B, N, D).

    Returns:
        (B, N, 3).
    """
    # In float64, which autocast does not change; features that overflowed in float16 become 0,
    # because a picture must not end a run.
    rows = patches.flatten(0, 1).double().nan_to_num(0.0, 0.0, 0.0)
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    found = (rows @ vectors[:, -3:].flip(1)).float()
    # The sign of a component is arbitrary; this choice is mostly stable from panel to panel.
    found = found * found.pow(3).sum(dim=0).sign()
    low, high = torch.quantile(found, torch.tensor([0.02, 0.98], device=found.device), dim=0)
    spread = (high - low).clamp(min=torch.finfo(found.dtype).tiny)
    return ((found - low) / spread).clamp(0, 1).unflatten(0, patches.shape[:2])


def rows_of(columns: Sequence[Tensor]) -> Tensor:
    """(B, 3, h, w) uint8 columns of any size → (3, height, width) with one row per image."""
    largest = max((tuple(column.shape[-2:]) for column in columns), key=math.prod)
    framed = []
    for column in columns:
        if column.shape[-2:] != largest:
            column = F.interpolate(column.float(), size=largest, mode="nearest").to(torch.uint8)
        framed.append(F.pad(column, (FRAME,) * 4, value=255))
    return torch.cat(list(torch.cat(framed, dim=-1)), dim=-2)


def code_colors(vectors: Tensor) -> Tensor:
    """A color for each code of a codebook, similar ones for similar codes: (K, C) → (K, 3) in
    [0, 1].
    """
    return principal_colors(vectors.unsqueeze(0)).squeeze(0)


def picture_of(colors: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, 3) in [0, 1] → (B, 3, down, across) uint8, one pixel per patch."""
    picture = colors.unflatten(1, grid).permute(0, 3, 1, 2)
    return (picture * 255).round().to(torch.uint8)
