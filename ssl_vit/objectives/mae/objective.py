"""Masked autoencoder: hide most patches, encode the rest, predict the hidden pixels.

He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. Unlike in
the paper, hidden patches are blanked in the image before an overlapping stem, so that no pixel
leaks; and the decoder's last block and layer run on hidden patches only, the only ones in the loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, SparseBackbone
from ssl_vit.models.block import Block, layer_norm
from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.initialization import initialize, initialize_token
from ssl_vit.models.patches import patchify_some, put
from ssl_vit.models.position import sincos_table
from ssl_vit.objectives.mae.config import MaeConfig
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.objective import Compilable, Observed, StepOutput
from ssl_vit.objectives.one_crop.objective import PixelObjective
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.objectives.pixels import PixelScale

# B images, N patches, K visible, M hidden, D encoder width, W decoder width, P pixels per
# side of a patch.


class MaeDecoder(nn.Module):
    """A light transformer over all patches: encoded visible ones, and a shared mask token for each
    hidden one (section 3).
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
        self.predict = nn.Linear(width, backbone.stride**2 * backbone.channels)
        initialize(self, backbone.initialization)
        initialize_token(self.mask_token)

    def forward(self, features: Features, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden patches.

        Args:
            features: Features of the K visible patches.
            visible, hidden: (B, K) and (B, M) int64 patch indices.

        Returns:
            (B, M, P × P × 3) predicted pixels.
        """
        tokens = self.fill(features.cls, features.patches, visible)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        # After the class token.
        return self.read(last(tokens, None, hidden + 1))

    def fill(self, cls: Tensor, patches: Tensor, visible: Tensor) -> Tensor:
        """(B, D), (B, K, D) and (B, K) int64 → (B, 1 + N, W) tokens of the decoder."""
        seen = self.embed(patches)
        blank = self.mask_token.to(seen.dtype).expand(len(seen), self.positions.shape[1], -1)
        tokens = put(seen, visible, into=blank) + self.positions
        return torch.cat([self.embed(cls).unsqueeze(1), tokens], dim=1)

    def read(self, tokens: Tensor) -> Tensor:
        """(B, M, W) → (B, M, P × P × 3) predicted pixels."""
        return self.predict(self.norm(tokens))


class Mae(PixelObjective):
    """Backbone, decoder, and the loss between them."""

    backbone: SparseBackbone

    def __init__(
        self, config: MaeConfig, backbone: SparseBackbone, pixel_scale: PixelScale
    ) -> None:
        super().__init__()
        self.config, self.backbone, self.pixel_scale = config, backbone, pixel_scale
        self.decoder = MaeDecoder(config, backbone.config)
        self.num_hidden = config.num_hidden(backbone.config)

    def forward(self, batch: MaskedBatch, step: int) -> StepOutput:
        """Mean squared error on hidden patches, in float32 (equation: section 3, "Reconstruction
        target").
        """
        images = self.pixel_scale(batch.images)
        visible, hidden = visible_and_hidden(batch.hidden, self.num_hidden)
        # The targets first, so that their temporaries are freed before activations accumulate.
        targets = self._targets(images, hidden)
        tokens = self.backbone.embed_visible(images, batch.hidden, visible)
        del images  # freed before activations accumulate
        features = self.backbone.encode(tokens)
        loss = F.mse_loss(self.decoder(features, visible, hidden).float(), targets.float())
        # Not the class token: it does not enter the loss.
        return StepOutput(loss, {}, Observed(features.patches.detach().mean(dim=1)))

    def compilable(self) -> list[Compilable]:
        """See :class:`Objective`."""
        own = [Compilable(self.decoder, "fill"), Compilable(self.decoder, "read")]
        return [*super().compilable(), *own, Compilable(self, "_targets")]

    @torch.no_grad()
    def _targets(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(B, M, P × P × 3) targets at (B, M) int64 ``hidden`` patches."""
        patches = patchify_some(images, self.backbone.config.stride, hidden)
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
        """Features of the visible patches only; no hidden pixel reaches them, with either stem."""
        return self.backbone.encode(self.backbone.embed_visible(images, hidden, visible))

    def hidden_pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """See :class:`PixelObjective`."""
        predicted = self.reconstruct(images, hidden).float()
        if not self.config.normalize_targets:
            return predicted
        # A prediction is in units of its own patch's spread: without this the picture is gray mush.
        _, indices = visible_and_hidden(hidden, self.num_hidden)
        patches = patchify_some(images, self.backbone.config.stride, indices)
        _, mean, spread = normalize_patches(patches)
        return predicted * spread + mean


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each patch to mean 0 and variance 1 over its own values.

    Args:
        patches: (B, M, P × P × C).

    Returns:
        The normalized patches, and the (B, M, 1) mean and spread that undo it: ``x * spread +
        mean``.

    Source: He et al. 2021, section 3, "Reconstruction target"; the unbiased variance and the 1e-6
        are from the paper's code.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    spread = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / spread, mean, spread
