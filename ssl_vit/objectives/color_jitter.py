"""Color jitter, blur and solarization of batches of images, on the device they are on.

``draw_color_jitter`` draws the parameters of a view in a data worker, from the sample's own random
generator, as a row of numbers; ``apply_color_jitter`` does the pixel work on the device, for all
images of a batch at once. Unlike in torchvision's transforms, colors are changed in one order for
all images (brightness, contrast, saturation, hue).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.objectives.autocast import without_autocast

# B images, S pixels per side.

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's and torchvision's
_RADIUS = 4  # pixels of the blur kernel on each side; 9 in all, as in Oquab et al.'s code
_SOLARIZE_FROM = 0.5


class ColorJitter(NamedTuple):
    """Probabilities (in [0, 1]) and strengths of the augmentations of one view."""

    jitter: float
    """Probability of color jitter."""
    brightness: float
    """The factor is drawn from 1 ± this; likewise for contrast and saturation."""
    contrast: float
    saturation: float
    hue: float
    """The hue is rotated by up to ± this share of a full turn."""
    gray: float
    """Probability of conversion to grayscale."""
    blur: float
    """Probability of a Gaussian blur whose standard deviation is drawn from 0.1 to 2 pixels."""
    solarize: float
    """Probability of solarization."""


# Columns: brightness, contrast and saturation factors; hue rotation; grayscale or not; standard
# deviation of the blur (0: none); solarized or not.
NUM_COLUMNS = 7


def draw_color_jitter(settings: ColorJitter, rng: np.random.Generator) -> np.ndarray:
    """(7,) float32 parameters of one view. Always draws the same amount from ``rng``."""
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
    """Jitter, blur and solarize each image by its row of parameters, in float32 regardless of the
    precision of training.

    Args:
        images: (B, 3, S, S) uint8.
        rows: (B, 7) float32 from :func:`draw_color_jitter`.

    Returns:
        (B, 3, S, S) float32 in [0, 1].

    Source: Grill et al. 2020 (BYOL), arXiv 2006.07733, appendix B, tables 6 and 7; adopted by
        Caron et al. 2021 and Oquab et al. 2023.
    """
    x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    brightness, contrast, saturation, hue, gray, blur, solarize = (
        column.view(-1, 1, 1, 1) for column in rows.unbind(dim=1)
    )
    _jitter(x, brightness, contrast, saturation)
    x = _turn_hue(x, hue)
    x = torch.where(gray > 0, _gray(x), x)
    x = _blur(x, blur.view(-1))
    # The threshold 2 is never reached.
    return torch.where(x >= torch.where(solarize > 0, _SOLARIZE_FROM, 2.0), 1 - x, x)


@torch.no_grad()
def apply_color_factors(images: Tensor, rows: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of each image by its row of factors.

    Args:
        images: (B, 3, H, W) uint8.
        rows: (B, 3) float32; the first columns of :func:`draw_color_jitter`.

    Returns:
        (B, 3, H, W) float32 in [0, 255].
    """
    x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    _jitter(x, *(column.view(-1, 1, 1, 1) for column in rows.unbind(dim=1)))
    return x.mul_(255)


def _jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> None:
    """In place; (B, 3, H, W) in [0, 1], and (B, 1, 1, 1) factors."""
    x.mul_(brightness).clamp_(0, 1)
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True)
    x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    flat = _gray(x)
    x.sub_(flat).mul_(saturation).add_(flat).clamp_(0, 1)


def _gray(x: Tensor) -> Tensor:
    """(B, 3, S, S) → (B, 1, S, S)."""
    # Without a tensor of the weights: a GPU would wait for the host to send it.
    red, green, blue = x.split(1, dim=1)
    of_red, of_green, of_blue = _GRAY
    return red.mul(of_red).add_(green, alpha=of_green).add_(blue, alpha=of_blue)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of HSV colors by a share of a full turn; value and saturation are unchanged.

    Source: Smith 1978, "Color gamut transform pairs", in the form without sectors.
    """
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    red, green, blue = x.unbind(dim=1)
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    # In full turns; whole turns are removed by the rounding below.
    hue = hue.div_(chroma.clamp(min=1e-8).mul_(6)).add_(turn.squeeze(1))
    turned = value.unsqueeze(1).repeat(1, 3, 1, 1)
    for plane, center in enumerate((3 / 6, 1 / 6, -1 / 6)):
        # The share of the chroma to subtract from this channel: 1 within a sixth of a turn of the
        # opposite hue, 0 beyond a third of a turn.
        apart = hue + center
        apart.sub_(apart.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
        turned[:, plane].addcmul_(chroma, apart, value=-1)
    return turned


def _blur(x: Tensor, deviation: Tensor) -> Tensor:
    """Blur each image with its own Gaussian; a standard deviation of 0 leaves it unchanged."""
    chosen = deviation > 0
    places = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (places / deviation.clamp(min=0.1).unsqueeze(1)) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    kernel = torch.where(chosen.unsqueeze(1), kernel, (places == 0).to(x.dtype))
    batch, _, height, width = x.shape
    # A grouped convolution: each channel of each image has its own kernel.
    weights = kernel.repeat_interleave(3, dim=0).unsqueeze(1)
    flat = F.pad(x.reshape(1, batch * 3, height, width), [_RADIUS] * 4, mode="reflect")
    with without_autocast(flat):
        flat = F.conv2d(flat, weights.unsqueeze(2), groups=batch * 3)
        flat = F.conv2d(flat, weights.unsqueeze(3), groups=batch * 3)
    return flat.view_as(x)


PAPER_BLUR = (1.0, 0.1, 0.5)
"""Probability of a blur for the first global, the second global and each local view."""

RELEASED_BLUR = (0.0, 0.9, 0.5)
"""The probabilities in Oquab et al.'s code, which applies the complements."""
