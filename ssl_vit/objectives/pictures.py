"""Pictures of what a backbone sees, for the log: patch features as colors, and attention.

Every picture is made of rows, one an image, framed in white.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.pixels import PixelScale

# B images, N patches of a (down, across) grid, D width, S pixels a side.

FRAME = 2  # white pixels around each picture


def feature_panels(
    backbone: VisionTransformer, pixel_scale: PixelScale, images: Tensor
) -> dict[str, Tensor]:
    """`patch_features`: each image beside the three main directions of its patch features as
    colors; `attention`: beside where its class token looks in the last block, head by head.

    Args:
        backbone: In evaluation mode.
        images: (B, 3, S, S) normalized.

    Returns:
        Name → (3, height, width) uint8.
    """
    size = backbone.config.patch_size
    grid = images.shape[-2] // size, images.shape[-1] // size
    pixels = pixel_scale.back(images)
    # Not `backbone(images)`: at ZeRO-3 that would let go of its tokens, which come next.
    colors = principal_colors(backbone.encode(backbone.embed(images)).patches)
    looks = backbone.class_attention(images)
    # Each head against its own most looked at patch: few patches take most of it.
    looks = looks / looks.amax(dim=2, keepdim=True).clamp(min=torch.finfo(looks.dtype).tiny)
    return {
        "patch_features": rows_of([pixels, _picture(colors, grid)]),
        "attention": rows_of([pixels, *(_picture(_gray(head), grid) for head in looks.unbind(1))]),
    }


def principal_colors(patches: Tensor) -> Tensor:
    """The first three principal components over the patches of all images together, each spread
    over [0, 1]; so one color means one thing in all of them (Oquab et al. 2023, figure 1).

    Args:
        patches: (B, N, D).

    Returns:
        (B, N, 3).
    """
    # In double, which autocast leaves alone; a feature that float16 could not hold is left out, as
    # a picture must not end a run.
    rows = patches.flatten(0, 1).double().nan_to_num(0.0, 0.0, 0.0)
    rows = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    found = (rows @ vectors[:, -3:].flip(1)).float()
    # A direction has no sign of its own; this one is the same from one panel to the next, mostly.
    found = found * found.pow(3).sum(dim=0).sign()
    low, high = torch.quantile(found, torch.tensor([0.02, 0.98], device=found.device), dim=0)
    spread = (high - low).clamp(min=torch.finfo(found.dtype).tiny)
    return ((found - low) / spread).clamp(0, 1).unflatten(0, patches.shape[:2])


def rows_of(columns: Sequence[Tensor]) -> Tensor:
    """(B, 3, S, S) uint8 columns, of any sizes → (3, height, width) with one row an image."""
    side = max(column.shape[-1] for column in columns)
    framed = []
    for column in columns:
        if column.shape[-1] != side:
            column = F.interpolate(column.float(), size=(side, side), mode="nearest").to(
                torch.uint8
            )
        framed.append(F.pad(column, (FRAME,) * 4, value=255))
    return torch.cat(list(torch.cat(framed, dim=-1)), dim=-2)


def _gray(values: Tensor) -> Tensor:
    return values.unsqueeze(-1).expand(-1, -1, 3)


def _picture(colors: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, 3) in [0, 1] → (B, 3, down, across) uint8, a pixel a patch."""
    picture = colors.unflatten(1, grid).permute(0, 3, 1, 2)
    return (picture * 255).round().to(torch.uint8)
