"""The network that student and teacher have in common: a backbone with its heads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone, TokenBackbone
from ssl_vit.objectives.dino.config import DinoConfig
from ssl_vit.objectives.dino.heads import ProjectionHead

# B images, L local views, V = 2 + L views, N patches, R masked patches, D width, C prototypes.


class NetworkOutput(NamedTuple):
    """Outputs of the student or the teacher for the views of a batch."""

    cls: Tensor
    """(2 B, D) class tokens of the global views."""
    logits: Tensor
    """(2 B, C) logits of the class tokens, or (V B, C) if local views were encoded too."""
    patch_logits: Tensor
    """(R, C) logits of the masked patches; empty if there are none."""


class Network(nn.Module):
    """A backbone with its heads; the student and the teacher are one each."""

    def __init__(self, config: DinoConfig, backbone: Backbone) -> None:
        super().__init__()
        width, hidden, layers = backbone.config.width, config.head_hidden, config.head_layers
        self.backbone = backbone
        self.head = ProjectionHead(width, hidden, layers, config.bottleneck, config.prototypes)
        self.patch_head = None
        if config.ibot_prototypes and config.ibot_weight:
            self.patch_head = ProjectionHead(
                width, hidden, layers, config.ibot_bottleneck, config.ibot_prototypes
            )

    def forward(
        self,
        images: Tensor,
        hidden: Tensor | None = None,
        filler: Tensor | None = None,
        masked_indices: Tensor | None = None,
        local: Tensor | None = None,
    ) -> NetworkOutput:
        """Encode views, and apply the heads to their class tokens and masked patches.

        Args:
            images: (2 B, 3, S, S) normalized, the global views.
            hidden: (2 B, N) bool, true where ``filler`` replaces a patch; None: nowhere.
            filler: (D,) mask token.
            masked_indices: (R,) int64 indices into the patches of all global views; None: none.
            local: (L B, 3, s, s) normalized; None: none.
        """
        if hidden is None:
            features = self.backbone(images)
        else:
            assert isinstance(self.backbone, TokenBackbone)
            features = self.backbone(images, hidden, filler)
        classes = features.cls
        if local is not None:
            classes = torch.cat([classes, self.backbone(local).cls])
        if masked_indices is None:
            return NetworkOutput(features.cls, self.head(classes), classes.new_empty(0, 0))
        # Not by `[…]`, whose gradient on a GPU sorts the indices: those that repeat are padding,
        # without a gradient.
        patches = features.patches.flatten(0, 1).index_select(0, masked_indices)
        if self.patch_head is not None:
            return NetworkOutput(features.cls, self.head(classes), self.patch_head(patches))
        # One call for all rows: normalizing and casting prototypes has a fixed cost.
        logits = self.head(torch.cat([classes, patches]))
        return NetworkOutput(features.cls, *logits.split([len(classes), len(patches)]))
