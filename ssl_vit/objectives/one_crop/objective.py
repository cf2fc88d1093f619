"""Objectives that predict the pixels of hidden patches show them."""

from abc import abstractmethod

import torch
from torch import Tensor

from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.objectives.pictures import feature_panels, reconstruction_panels

_SHOWN = 8  # images in a panel


class PixelObjective(Objective):
    """One that can fill in the hidden patches of an image."""

    @abstractmethod
    def hidden_pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(B, M, P × P × 3) float32 predictions for the hidden patches, normalized as the images.

        Args:
            images: (B, 3, H, W) normalized.
            hidden: (B, N) bool.
        """

    @torch.no_grad()
    def panels(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Rows of original | visible patches | reconstruction, and patch features, for up to 8
        images.
        """
        images, hidden = self.pixel_scale(batch.images[:_SHOWN]), batch.hidden[:_SHOWN]
        features = feature_panels(self.backbone, self.pixel_scale, images)
        predicted = self.hidden_pixels(images, hidden)
        rebuilt = reconstruction_panels(self.backbone, self.pixel_scale, images, hidden, predicted)
        return {**rebuilt, **features}
