"""From an image to the pixels of its crops: decoded once for all of them, at the smallest size that
serves them, resized and mirrored.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Box, Crop
from ssl_vit.data.decode import Picture, largest_shrink

# A JPEG is shrunk while it is decoded only as far as its crops stay this much larger than their
# results; the antialiased resize does the rest. At 2, Pillow's own choice for thumbnails, the
# result differs from that of a full decode by noise of about 50 dB.
_LEAST_EXCESS = 2.0


def render(picture: Picture, crops: Sequence[Crop], into: Sequence[Tensor]) -> None:
    """Decode an image once and make all its crops.

    Args:
        crops: Boxes inside the image.
        into: For each crop (h, w, 3) uint8, contiguous; filled.

    Raises:
        ValueError: The image is damaged.
    """
    shrink = min(
        largest_shrink(side, _LEAST_EXCESS * result)
        for crop in crops
        for side, result in zip((crop.box.height, crop.box.width), crop.size, strict=True)
    )
    pixels = picture.pixels(shrink, max(crop.box.top + crop.box.height for crop in crops))
    if pixels.shape[1] == picture.width:
        shrink = 1  # not a JPEG, or one that Pillow decoded
    for crop, target in zip(crops, into, strict=True):
        resize_into(pixels, _shrunk(crop.box, shrink, *pixels.shape[:2]), target)
        mirrored = [axis for axis, is_so in ((0, crop.down), (1, crop.across)) if is_so]
        if mirrored:
            # Channels first by strides only: torch has a fast path for this layout, as in resizing.
            planes = target.permute(2, 0, 1)
            planes.copy_(planes.flip([axis + 1 for axis in mirrored]))


def resize_into(pixels: np.ndarray, box: Box, target: Tensor) -> None:
    """Cut a box out and scale it, antialiased bicubic in integer arithmetic.

    Args:
        pixels: (H, W, 3) uint8 with any strides.
        box: Inside the image.
        target: (h, w, 3) uint8, contiguous; filled.
    """
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # Turned images have negative strides, which torch does not support even on sides of 1.
    if min(part.strides) < 0 or not pixels.flags.c_contiguous:
        part = part.copy()
    cut = torch.from_numpy(part)
    if cut.shape == target.shape:
        target.copy_(cut)
        return
    # The operator behind F.interpolate, which cannot write into an existing tensor: a third of its
    # time is spent on turning its result into planes.
    torch.ops.aten._upsample_bicubic2d_aa.out(
        cut.permute(2, 0, 1).unsqueeze(0),
        target.shape[:2],
        False,
        None,
        None,
        out=target.permute(2, 0, 1).unsqueeze(0),
    )


def _shrunk(box: Box, by: int, height: int, width: int) -> Box:
    """The box in an image whose sides were divided: edges rounded to its pixels, never empty."""
    if by == 1:
        return box
    top, left = min(round(box.top / by), height - 1), min(round(box.left / by), width - 1)
    bottom = min(max(round((box.top + box.height) / by), top + 1), height)
    right = min(max(round((box.left + box.width) / by), left + 1), width)
    return Box(top, left, bottom - top, right - left)
