"""Pictures for tests, and a sample made of one as a data worker makes it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import Canvases, canvas_bytes
from ssl_vit.data.decode import Picture
from ssl_vit.data.render import render
from ssl_vit.data.views import Views


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """The file's bytes; ``kind`` as Pillow calls it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: smooth waves and some noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / 10
    waves = np.stack([np.sin(down + across), np.cos(down), np.sin(across * 2)], axis=-1)
    return np.clip(127 + 80 * waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)


def draw_and_render(
    views: Views, pixels: np.ndarray, rng: np.random.Generator
) -> tuple[list[Tensor], Any]:
    """(for every size (V, 3, S, S) uint8, the draw) of one (H, W, 3) uint8 image."""
    draw = views.draw(pixels.shape[0], pixels.shape[1], rng)
    canvases = Canvases(
        views.crop_sizes, 1, torch.empty(canvas_bytes(views.crop_sizes, 1), dtype=torch.uint8)
    )
    render(Picture.of_pixels(pixels), draw.crops, canvases.of_image(0))
    return [crops[:, 0] for crops in canvases.crops()], draw


def center_crop(pixels: np.ndarray, size: int, ratio: float) -> Tensor:
    """(3, S, S) uint8: what an evaluation sees of an (H, W, 3) uint8 image."""
    target = torch.empty(size, size, 3, dtype=torch.uint8)
    crop = CenterCrop((size, size), ratio)(pixels.shape[0], pixels.shape[1])
    render(Picture.of_pixels(pixels), [crop], [target])
    return target.permute(2, 0, 1)


def as_channels_first(targets: Sequence[Tensor]) -> list[Tensor]:
    """(S, S, 3) each → (3, S, S)."""
    return [target.permute(2, 0, 1) for target in targets]
