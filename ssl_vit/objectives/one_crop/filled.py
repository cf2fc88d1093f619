"""Objectives that put a mask token in place of hidden patches and predict something of each with
one linear layer: SimMIM, MaskFeat, BEiT.
"""

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, TokenBackbone
from ssl_vit.models.initialization import initialize, initialize_token
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.config import OneCropConfig
from ssl_vit.objectives.pixels import PixelScale


class FilledObjective(Objective):
    """Backbone, mask token and a linear layer.

    Args:
        config: The number of hidden patches.
        backbone: The initialized backbone.
        pixel_scale: Normalization of pixels.
        num_outputs: Numbers to predict for each patch.
    """

    backbone: TokenBackbone

    def __init__(
        self,
        config: OneCropConfig,
        backbone: TokenBackbone,
        pixel_scale: PixelScale,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.backbone, self.pixel_scale = backbone, pixel_scale
        self.num_hidden = config.num_hidden(backbone.config)
        self.mask_token = nn.Parameter(torch.zeros(backbone.config.width))
        self.predict = nn.Linear(backbone.config.width, num_outputs)
        initialize_token(self.mask_token)
        initialize(self.predict, "truncated_normal")

    def encode(self, images: Tensor, hidden: Tensor) -> tuple[Features, Tensor]:
        """Features of all patches of (B, 3, H, W) normalized images with the (B, N) ``hidden`` ones
        replaced, and the (B, M) indices of these.
        """
        _, indices = visible_and_hidden(hidden, self.num_hidden)
        return self.backbone(images, hidden, self.mask_token), indices
