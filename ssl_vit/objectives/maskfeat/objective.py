"""MaskFeat: replace blocks of patches with a mask token, predict their HOG with one linear layer.

Wei et al. 2021, "Masked Feature Prediction for Self-Supervised Visual Pre-Training", arXiv
2112.09133, for images. How our HOG differs from that of the paper's code stands in `hog.py`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.backbone import TokenBackbone
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import blank_patches, put, take, unpatchify
from ssl_vit.objectives.hog import hog, hog_glyphs, hog_size
from ssl_vit.objectives.maskfeat.config import MaskFeatConfig
from ssl_vit.objectives.masking import block_hidden
from ssl_vit.objectives.objective import Observed, StepOutput
from ssl_vit.objectives.one_crop.filled import FilledObjective
from ssl_vit.objectives.one_crop.views import MaskedBatch, OneCropViews
from ssl_vit.objectives.pictures import feature_panels, rows_of
from ssl_vit.objectives.pixels import PixelScale

# B images, N patches, M hidden.

_SHOWN = 8  # images in a panel
_OF_HIDDEN = (1.0, 0.6, 0.15)  # orange: glyphs of hidden patches
_OF_VISIBLE = (0.75, 0.75, 0.75)


class MaskFeatViews(OneCropViews):
    """One crop; patches are hidden in blocks."""

    def __init__(self, config: MaskFeatConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.min_block_patches = config.min_block_patches

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`."""
        return block_hidden(self.grid, self.num_hidden, rng, self.min_block_patches)


class MaskFeat(FilledObjective):
    """Backbone, mask token and a linear layer."""

    def __init__(
        self, config: MaskFeatConfig, backbone: TokenBackbone, pixel_scale: PixelScale
    ) -> None:
        super().__init__(config, backbone, pixel_scale, hog_size(backbone.config.channels))
        self.config = config

    def forward(self, batch: MaskedBatch, step: int) -> StepOutput:
        """Mean squared error of the hidden patches' HOG, in float32."""
        images = self.pixel_scale(batch.images)
        features, hidden = self.encode(images, batch.hidden)
        # Of normalized images, which are there: HOG has no scale, so it is that of the pixels.
        targets = take(hog(images, self.backbone.config.stride), hidden)
        loss = F.mse_loss(self.predict(take(features.patches, hidden)).float(), targets)
        return StepOutput(loss, {}, Observed(features.patches.detach().mean(dim=1)))

    @torch.no_grad()
    def panels(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """`hog`: rows of image | visible patches | HOG | HOG with that of hidden patches predicted,
        hidden patches orange; and patch features; for up to 8 images.
        """
        images, hidden = self.pixel_scale(batch.images[:_SHOWN]), batch.hidden[:_SHOWN]
        size, grid = self.backbone.config.stride, self.backbone.grid_of(images)
        panels = feature_panels(self.backbone, self.pixel_scale, images)
        features, indices = self.encode(images, hidden)
        truth = hog(images, size)
        predicted = put(self.predict(take(features.patches, indices)).float(), indices, truth)
        colors = torch.where(
            hidden[..., None, None],
            images.new_tensor(_OF_HIDDEN),
            images.new_tensor(_OF_VISIBLE),
        )
        columns = [self.pixel_scale.back(x) for x in (images, blank_patches(images, hidden, size))]
        for each in (truth, predicted):
            glyphs = hog_glyphs(each, size).unsqueeze(-1) * colors
            pictures = unpatchify(glyphs.flatten(2), 2 * size, grid)
            columns.append((pictures * 255).round().to(torch.uint8))
        return {"hog": rows_of(columns), **panels}
