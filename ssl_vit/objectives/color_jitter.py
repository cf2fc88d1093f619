"""Colors, blur and solarization on batches of images, on whichever device they are.

``draw_color_jitter`` draws what is done to a view in a data worker, from the sample's own
randomness, as a row of numbers; ``apply_color_jitter`` does the pixel work on the device, for all
images of a batch at once. Unlike in torchvision's transforms, colors are changed in one order for
all images (brightness, contrast, saturation, hue).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.objectives.autocast import without_autocast

# B images, S pixels a side, K pixels of a blur's kernel.

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's and torchvision's
_RADIUS = 4  # pixels of a blur's kernel on each side; a kernel of 9 as in Oquab et al.'s code
_SOLARIZE_FROM = 0.5


class ColorJitter(NamedTuple):
    """What is drawn for one view; probabilities in [0, 1]."""

    jitter: float
    """Of changing colors."""
    brightness: float
    """Factors are drawn from 1 ± this; contrast and saturation alike."""
    contrast: float
    saturation: float
    hue: float
    """The hue is turned by up to ± this part of a full turn."""
    gray: float
    blur: float
    """Of a Gaussian blur whose standard deviation is drawn from 0.1 to 2 pixels."""
    solarize: float


# One column each: three factors, turn of the hue, gray or not, deviation of the blur (0: none),
# solarized or not.
NUM_COLUMNS = 7


def draw_color_jitter(settings: ColorJitter, rng: np.random.Generator) -> np.ndarray:
    """(7,) float32: what to do with one view. Always takes as much of ``rng``."""
    noise = rng.random(9)

    def between(place: int, spread: float) -> float:
        return 1 + spread * (2 * noise[place] - 1)

    row = np.array([1, 1, 1, 0, 0, 0, 0], dtype=np.float32)
    if noise[0] < settings.jitter:
        row[0] = max(0.0, between(1, settings.brightness))
        row[1] = max(0.0, between(2, settings.contrast))
        row[2] = max(0.0, between(3, settings.saturation))
        row[3] = settings.hue * (2 * noise[4] - 1)
    row[4] = noise[5] < settings.gray
    if noise[6] < settings.blur:
        row[5] = 0.1 + 1.9 * noise[7]
    row[6] = noise[8] < settings.solarize
    return row


@torch.no_grad()
def apply_color_jitter(images: Tensor, rows: Tensor) -> Tensor:
    """Change colors, blur and solarize each image as its row says, in float32 whatever training
    is in.

    Args:
        images: (B, 3, S, S) uint8.
        rows: (B, 7) float32 from :func:`draw_color_jitter`.

    Returns:
        (B, 3, S, S) float32 in [0, 1].

    Source: the recipe is Grill et al. 2020 (BYOL), arXiv 2006.07733, appendix B, tables 6 and 7,
        which Caron et al. 2021 and Oquab et al. 2023 take over.
    """
    x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    brightness, contrast, saturation, hue, gray, blur, solarize = (
        column.view(-1, 1, 1, 1) for column in rows.unbind(dim=1)
    )
    x.mul_(brightness).clamp_(0, 1)
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True)
    x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    flat = _gray(x)
    x.sub_(flat).mul_(saturation).add_(flat).clamp_(0, 1)
    x = _turn_hue(x, hue)
    x = torch.where(gray > 0, _gray(x), x)
    x = _blur(x, blur.view(-1))
    # No value reaches 2.
    return torch.where(x >= torch.where(solarize > 0, _SOLARIZE_FROM, 2.0), 1 - x, x)


def _gray(x: Tensor) -> Tensor:
    """(B, 3, S, S) → (B, 1, S, S)."""
    weights = x.new_tensor(_GRAY).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV colors by a part of a full turn; value and saturation stay.

    Source: Smith 1978, "Color gamut transform pairs", as the one formula that needs no sectors.
    """
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    red, green, blue = x.unbind(dim=1)
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    # In full turns, any number of them: only what is left of whole ones counts below.
    hue = hue.div_(chroma.clamp(min=1e-8).mul_(6)).add_(turn.squeeze(1))
    turned = torch.empty_like(x)
    for plane, center in enumerate((3 / 6, 1 / 6, -1 / 6)):
        # The share of the chroma that this color lacks: 1 around the hue opposite to it, where the
        # distance is at most a sixth of a turn, and 0 from a third on.
        apart = hue + center
        apart.sub_(apart.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, apart, value=-1, out=turned[:, plane])
    return turned


def _blur(x: Tensor, deviation: Tensor) -> Tensor:
    """Blur each image by its own Gaussian; where the deviation is 0, leave it."""
    chosen = deviation > 0
    places = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (places / deviation.clamp(min=0.1).unsqueeze(1)) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    kernel = torch.where(chosen.unsqueeze(1), kernel, (places == 0).to(x.dtype))
    batch, _, height, width = x.shape
    # All images and channels as the channels of one image, each with a kernel of its own.
    weights = kernel.repeat_interleave(3, dim=0).unsqueeze(1)
    flat = F.pad(x.reshape(1, batch * 3, height, width), [_RADIUS] * 4, mode="reflect")
    with without_autocast(flat):
        flat = F.conv2d(flat, weights.unsqueeze(2), groups=batch * 3)
        flat = F.conv2d(flat, weights.unsqueeze(3), groups=batch * 3)
    return flat.view_as(x)


PAPER_BLUR = (1.0, 0.1, 0.5)
"""Probability of a blur for the first global, the second global and each local view."""

RELEASED_BLUR = (0.0, 0.9, 0.5)
"""As Oquab et al.'s code has them, the wrong way round."""
