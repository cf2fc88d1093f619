"""Views of an image for DINO, iBOT and DINOv2: two global views, local views, and masks.

Everything random is drawn here, from the sample's own generator; color jitter and blur are applied
on the device (`color_jitter.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.crops import Crop, crop_aspect, random_resized_crop_box
from ssl_vit.data.views import Sample
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import blank_patches
from ssl_vit.objectives.color_jitter import (
    PAPER_BLUR,
    RELEASED_BLUR,
    ColorJitter,
    apply_color_jitter,
    draw_color_jitter,
)
from ssl_vit.objectives.dino.config import NUM_GLOBALS, DinoConfig
from ssl_vit.objectives.masking import block_hidden

# B images, L local views, V = 2 + L views, N patches of a global view, S and s pixels per side,
# R masked patches of a micro-batch, padding included.

# The number of masked patches per micro-batch is padded to a multiple of 1 / _STEPS of its maximum,
# so that it takes few values.
_STEPS = 8


class MultiCrop(NamedTuple):
    """Everything that is random in one sample."""

    crops: tuple[Crop, ...]
    """Crops of all views, the global views first."""
    color_jitter: np.ndarray
    """(V, 7) float32; see `draw_color_jitter`."""
    hidden: np.ndarray
    """(2, N) bool, true where a patch of a global view is masked."""


class DinoBatch(NamedTuple):
    """One micro-batch; tensors of several views are view-major: the first view of all images, then
    the second.
    """

    images: Tensor
    """(2 B, 3, S, S) uint8, the global views."""
    local: Tensor
    """(L B, 3, s, s) uint8; empty where L is 0."""
    color_jitter: Tensor
    """(V B, 7) float32; see `draw_color_jitter`."""
    hidden: Tensor
    """(2 B, N) bool, true where masked."""
    masked: Tensor
    """(R,) int64 indices of masked patches among the 2 B N of all global views; then padding."""
    weights: Tensor
    """(R,) float32 weights that sum to 1 / (2 B) for each view with masked patches; 0 for
    padding.
    """
    numbers: Tensor
    """(B,) int64 sample numbers."""


class DinoViews:
    """Multi-crop (Caron et al. 2020, arXiv 2006.09882, section 3.2) with block-wise masks."""

    def __init__(self, config: DinoConfig, backbone: BackboneConfig) -> None:
        self.config, self.stride = config, backbone.stride
        self.grid, self.crop_sizes = backbone.grid, config.crops(backbone)
        blurs = RELEASED_BLUR if config.released_blur else PAPER_BLUR
        solarize = (0.0, config.solarize, 0.0)
        colors = (config.brightness, config.contrast, config.saturation, config.hue)
        self.color_jitter = [
            ColorJitter(config.jitter, *colors, config.grayscale, *pair)
            for pair in zip(blurs, solarize, strict=True)
        ]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> MultiCrop:
        """Crops, flips, color jitter and masks for an image of this size."""
        config = self.config
        crops, rows = [], []
        for view in range(NUM_GLOBALS + config.local_crops):
            is_global = view < NUM_GLOBALS
            area = (config.min_global_area, 1.0)
            if not is_global:
                area = (config.min_local_area, config.min_global_area)
            size = self.crop_sizes[0 if is_global else 1][1]
            box = random_resized_crop_box(height, width, area, crop_aspect(size), rng)
            across = rng.random() < config.horizontal_flip
            down = rng.random() < config.vertical_flip
            crops.append(Crop(box, size, across, down))
            rows.append(draw_color_jitter(self.color_jitter[min(view, NUM_GLOBALS)], rng))
        hidden = np.stack([self._draw_hidden(rng) for _ in range(NUM_GLOBALS)])
        return MultiCrop(tuple(crops), np.stack(rows), hidden)

    def _draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        config, num_patches = self.config, self.grid[0] * self.grid[1]
        chosen, share = rng.random() < config.mask_probability, rng.random()
        if not chosen or not config.ibot_weight:
            return np.zeros(num_patches, dtype=bool)
        ratio = config.min_mask_ratio + share * (config.max_mask_ratio - config.min_mask_ratio)
        return block_hidden(self.grid, round(ratio * num_patches), rng)

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[MultiCrop], samples: Sequence[Sample]
    ) -> DinoBatch:
        """A batch of all views."""
        # (V, B, …) → (V B, …): the first view of all images, then the second.
        rows = np.stack([draw.color_jitter for draw in draws], axis=1)
        hidden = np.stack([draw.hidden for draw in draws], axis=1)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        masked, weights = self._pad(hidden)
        local = crops[1].flatten(0, 1) if self.config.local_crops else crops[0].new_empty(0)
        return DinoBatch(
            images=crops[0].flatten(0, 1),
            local=local,
            color_jitter=torch.from_numpy(rows.reshape(-1, rows.shape[-1])),
            hidden=torch.from_numpy(hidden),
            masked=torch.from_numpy(masked),
            weights=torch.from_numpy(weights),
            numbers=torch.tensor([sample.number for sample in samples], dtype=torch.int64),
        )

    def _pad(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Padded indices and weights of the masked patches of (2 B, N) views."""
        places = np.flatnonzero(hidden)
        counts = hidden.sum(axis=1)
        weights = (1 / np.maximum(counts, 1) / len(hidden)).repeat(counts)
        step = max(1, -(-round(self.config.max_mask_ratio * hidden.size) // _STEPS))
        padding = -len(places) % step if self.config.ibot_weight else 0
        return (
            np.pad(places, (0, padding)).astype(np.int64),
            np.pad(weights, (0, padding)).astype(np.float32),
        )

    def show(self, crops: Sequence[Tensor], draw: MultiCrop) -> list[Tensor]:
        """Every view after color jitter; the global ones again with masked patches black.

        Args:
            crops: For every size (V, 3, S, S) uint8, of one image.
            draw: Color jitter and masks of the image.
        """
        rows = torch.from_numpy(draw.color_jitter)
        pictures: list[Tensor] = []
        begin = 0
        for group in crops:
            colored = apply_color_jitter(group, rows[begin : begin + len(group)])
            begin += len(group)
            pixels = (colored * 255).round().to(torch.uint8)
            pictures += list(pixels)
            if len(pictures) == NUM_GLOBALS and self.config.ibot_weight:
                hidden = torch.from_numpy(draw.hidden)
                pictures += list(blank_patches(pixels, hidden, self.stride))
        return pictures
