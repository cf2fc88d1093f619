"""Masked autoencoder: hide most patches, encode the rest, predict the hidden pixels.

He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. Beyond the
paper: hidden patches are blanked in the image before an overlapping stem, so nothing leaks there;
and the decoder's last layer runs on hidden patches only, since nothing else enters the loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.data.augment import Crop, random_resized_crop_box
from ssl_vit.models.block import Block, layer_norm
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.initialization import initialize, initialize_token
from ssl_vit.models.position import sincos_table
from ssl_vit.models.vit import Features, VisionTransformer, blank_patches
from ssl_vit.objectives.config import MaeConfig, num_hidden_patches
from ssl_vit.objectives.masking import (
    patchify,
    put,
    random_hidden,
    take,
    unpatchify,
    visible_and_hidden,
)
from ssl_vit.objectives.objective import Objective, Observed, StepOutput
from ssl_vit.objectives.pictures import feature_panels, rows_of
from ssl_vit.objectives.pixels import PixelScale

# B images, N patches, K visible, M hidden, D encoder width, W decoder width, P pixels a side of a
# patch.


class MaeDraw(NamedTuple):
    """All that is random in one sample."""

    crops: tuple[Crop]
    hidden: np.ndarray
    """(N,) bool."""


class MaeBatch(NamedTuple):
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    hidden: Tensor
    """(B, N) bool, the same number true in every row."""
    numbers: Tensor
    """(B,) int64 sample numbers."""


class MaeViews:
    """A random crop, flips and the mask, all from the sample's own randomness (appendix A.1)."""

    def __init__(self, config: MaeConfig, backbone: BackboneConfig) -> None:
        self.config = config
        self.patch_size, self.image_size = backbone.patch_size, backbone.image_size
        self.num_patches = backbone.num_patches
        self.num_hidden = num_hidden_patches(backbone.num_patches, config.mask_ratio)

    @property
    def crop_sizes(self) -> tuple[tuple[int, int], ...]:
        """One crop."""
        return ((1, self.image_size),)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> MaeDraw:
        """Crop, flips and mask for an image of this size."""
        config = self.config
        area = (config.min_crop_area, config.max_crop_area)
        box = random_resized_crop_box(height, width, area, (3 / 4, 4 / 3), rng)
        across, down = rng.random() < config.horizontal_flip, rng.random() < config.vertical_flip
        hidden = random_hidden(self.num_patches, self.num_hidden, rng)
        return MaeDraw((Crop(box, self.image_size, across, down),), hidden)

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[MaeDraw], numbers: Sequence[int]
    ) -> MaeBatch:
        """The only crop of each image, with its mask."""
        hidden = torch.from_numpy(np.stack([draw.hidden for draw in draws]))
        return MaeBatch(crops[0][0], hidden, torch.tensor(numbers, dtype=torch.int64))

    def show(self, crops: Sequence[Tensor], draw: MaeDraw) -> list[Tensor]:
        """The crop, and what of it the encoder sees: hidden patches black.

        Args:
            crops: (1, 3, S, S) uint8, of one image.
        """
        hidden = torch.from_numpy(draw.hidden).unsqueeze(0)
        return [crops[0][0], blank_patches(crops[0], hidden, self.patch_size)[0]]


class MaeDecoder(nn.Module):
    """A light transformer over all patches, visible ones encoded and hidden ones a shared token
    (section 3).
    """

    positions: Tensor

    def __init__(self, config: MaeConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_table(backbone.grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = layer_norm(width)
        self.predict = nn.Linear(width, backbone.patch_size**2 * 3)
        initialize(self, backbone.initialization)
        initialize_token(self.mask_token)

    def forward(self, features: Features, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden patches.

        Args:
            features: Of the K visible patches.
            visible, hidden: (B, K) and (B, M) int64 patch indices.

        Returns:
            (B, M, P × P × 3).
        """
        cls = self.embed(features.cls).unsqueeze(1)
        seen = self.embed(features.patches)
        blank = self.mask_token.to(seen.dtype).expand(len(seen), self.positions.shape[1], -1)
        tokens = torch.cat([cls, put(seen, visible, into=blank) + self.positions], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(take(tokens[:, 1:], hidden)))


class Mae(Objective):
    """Backbone, decoder, and the loss between them."""

    def __init__(
        self, config: MaeConfig, backbone: VisionTransformer, pixel_scale: PixelScale
    ) -> None:
        super().__init__()
        self.config, self.backbone, self.pixel_scale = config, backbone, pixel_scale
        self.decoder = MaeDecoder(config, backbone.config)
        self.num_hidden = num_hidden_patches(backbone.config.num_patches, config.mask_ratio)

    def forward(self, batch: MaeBatch, step: int) -> StepOutput:
        """Mean squared error on hidden patches, in float32 (equation: section 3, "Reconstruction
        target").
        """
        images = self.pixel_scale(batch.images)
        # The targets first: their temporaries are gone before activations pile up.
        targets = self._targets(images, batch.hidden)
        visible, hidden = visible_and_hidden(batch.hidden, self.num_hidden)
        features = self.encode_visible(images, batch.hidden, visible)
        loss = F.mse_loss(self.decoder(features, visible, hidden).float(), targets.float())
        # Not the class token: no loss asks anything of it.
        return StepOutput(loss, {}, Observed(features.patches.detach().mean(dim=1)))

    @torch.no_grad()
    def _targets(self, images: Tensor, hidden: Tensor) -> Tensor:
        """What the hidden patches are compared with: (B, M, P × P × 3)."""
        _, indices = visible_and_hidden(hidden, self.num_hidden)
        patches = take(patchify(images, self.backbone.config.patch_size), indices)
        return normalize_patches(patches)[0] if self.config.normalize_targets else patches

    def reconstruct(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Predictions for the hidden patches.

        Args:
            images: (B, 3, H, W) normalized.
            hidden: (B, N) bool.

        Returns:
            (B, M, P × P × 3), patches in row-major order, in the units of the targets.
        """
        visible_indices, hidden_indices = visible_and_hidden(hidden, self.num_hidden)
        features = self.encode_visible(images, hidden, visible_indices)
        return self.decoder(features, visible_indices, hidden_indices)

    def encode_visible(self, images: Tensor, hidden: Tensor, visible: Tensor) -> Features:
        """Features of the visible patches alone; no hidden pixel reaches them, whichever the
        stem.
        """
        return self.backbone.encode(take(self.backbone.embed(images, hidden), visible))

    @torch.no_grad()
    def panels(self, batch: MaeBatch) -> dict[str, Tensor]:
        """Rows of original | what the encoder saw | reconstruction, and what the backbone makes of
        whole images, for up to 8.
        """
        batch = MaeBatch(*(tensor[:8] for tensor in batch))
        images, size = self.pixel_scale(batch.images), self.backbone.config.patch_size
        _, hidden = visible_and_hidden(batch.hidden, self.num_hidden)
        patches = patchify(images, size)
        predicted = self.reconstruct(images, batch.hidden).float()
        if self.config.normalize_targets:
            # A prediction is in units of its own patch's spread: without this the picture is gray
            # mush.
            _, mean, spread = normalize_patches(take(patches, hidden))
            predicted = predicted * spread + mean
        filled = put(predicted, hidden, into=patches)
        rebuilt = unpatchify(filled, size, self.backbone.config.grid)
        seen = blank_patches(images, batch.hidden, size)
        columns = [self.pixel_scale.back(x) for x in (images, seen, rebuilt)]
        features = feature_panels(self.backbone, self.pixel_scale, images)
        return {"reconstruction": rows_of(columns), **features}


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch with mean 0 and variance 1 over its own values.

    Args:
        patches: (B, M, P × P × C).

    Returns:
        The normalized patches, and the (B, M, 1) mean and spread that undo it: ``x * spread +
        mean``.

    Source: He et al. 2021, section 3, "Reconstruction target"; the unbiased variance and the 1e-6
        are its code's.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    spread = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / spread, mean, spread
