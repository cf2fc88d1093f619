"""SimMIM: replace large squares with a mask token, predict their pixels with one linear layer.

Xie et al. 2021, "SimMIM: A Simple Framework for Masked Image Modeling", arXiv 2111.09886. Unlike
in the paper's code, the ViT has absolute positions instead of relative ones.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.models.backbone import TokenBackbone
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import patchify_some, take
from ssl_vit.objectives.masking import random_hidden
from ssl_vit.objectives.objective import Observed, StepOutput
from ssl_vit.objectives.one_crop.filled import FilledObjective
from ssl_vit.objectives.one_crop.objective import PixelObjective
from ssl_vit.objectives.one_crop.views import MaskedBatch, OneCropViews
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.simmim.config import SimMimConfig


class SimMimViews(OneCropViews):
    """One crop; squares of ``mask_unit`` pixels are hidden together (section 3.2)."""

    def __init__(self, config: SimMimConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.units, self.patches_per_unit = config.units(backbone), config.mask_unit // self.stride

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`."""
        count, side = self.num_hidden // self.patches_per_unit**2, self.patches_per_unit
        units = random_hidden(self.units[0] * self.units[1], count, rng).reshape(self.units)
        return units.repeat(side, axis=0).repeat(side, axis=1).reshape(-1)


class SimMim(FilledObjective, PixelObjective):
    """Backbone, mask token and a linear layer."""

    def __init__(
        self, config: SimMimConfig, backbone: TokenBackbone, pixel_scale: PixelScale
    ) -> None:
        sizes = backbone.config
        super().__init__(config, backbone, pixel_scale, sizes.stride**2 * sizes.channels)
        self.config = config

    def forward(self, batch: MaskedBatch, step: int) -> StepOutput:
        """Mean absolute error on hidden pixels, in float32 (section 3.4)."""
        images = self.pixel_scale(batch.images)
        features, hidden = self.encode(images, batch.hidden)
        targets = patchify_some(images, self.backbone.config.stride, hidden)
        loss = F.l1_loss(self.predict(take(features.patches, hidden)).float(), targets)
        return StepOutput(loss, {}, Observed(features.patches.detach().mean(dim=1)))

    def hidden_pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """See :class:`PixelObjective`."""
        features, indices = self.encode(images, hidden)
        return self.predict(take(features.patches, indices)).float()
