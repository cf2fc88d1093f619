"""A visual tokenizer: encode patches, replace each by the nearest of K codes, decode a target.

Peng et al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers", arXiv
2208.06366 (VQ-KD). See `codebook.py` for what differs from there.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone, Features
from ssl_vit.models.block import Block, layer_norm
from ssl_vit.models.build import build_backbone
from ssl_vit.models.initialization import initialize, initialize_token
from ssl_vit.models.patches import patchify, unpatchify
from ssl_vit.objectives.frozen import Frozen
from ssl_vit.objectives.objective import Objective, Observed, StepOutput
from ssl_vit.objectives.one_crop.pairs import PairedBatch
from ssl_vit.objectives.pictures import (
    code_colors,
    feature_panels,
    picture_of,
    principal_colors,
    rows_of,
)
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.tokenizer.codebook import Codebook, Quantized
from ssl_vit.objectives.tokenizer.config import TokenizerConfig
from ssl_vit.objectives.tokenizer.network import TokenizerNetwork

# B images, N patches, D width, C dimensions of a code, T numbers of a target.

_SHOWN = 8  # images in a panel
_RANDOM_TEACHER_SEED = 2209_03917


class TokenDecoder(nn.Module):
    """From codes to targets: a few blocks over all patches, then Linear, Tanh, Linear.

    Args:
        dim: C.
        backbone: The encoder, whose width and number of heads it has.
        depth: Number of blocks; 0: one linear layer.
        target_dim: T.
    """

    def __init__(self, dim: int, backbone: Backbone, depth: int, target_dim: int) -> None:
        super().__init__()
        sizes = backbone.config
        width = sizes.width if depth else dim
        self.embed: nn.Module = nn.Linear(dim, width) if depth else nn.Identity()
        if depth:
            self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches, width))
        heads = getattr(sizes, "heads", max(1, width // 64))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.predict: nn.Module = nn.Linear(width, target_dim)
        if depth:
            self.predict = nn.Sequential(
                layer_norm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, target_dim)
            )
        initialize(self, "truncated_normal")
        if depth:
            initialize_token(self.pos_embed)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, N, C) → (B, N, T)."""
        tokens = self.embed(vectors)
        if self.blocks:
            tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(tokens)


class Tokenizer(Objective):
    """Encoder, codebook and decoder, and a frozen teacher if the target is one's features."""

    def __init__(
        self,
        config: TokenizerConfig,
        backbone: Backbone,
        pixel_scale: PixelScale,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.config, self.pixel_scale = config, pixel_scale
        sizes, codes = backbone.config, config.codes(backbone.config)
        start_step = int(config.codebook_start * total_steps)
        codebook = Codebook(
            codes.num, codes.dim, config.codebook_momentum, config.dead_below, start_step
        )
        self.network = TokenizerNetwork(backbone, codes, codebook)
        if config.is_backbone_given:
            backbone.requires_grad_(requires_grad=False)
        self._teacher = self._build_teacher(backbone)
        target_dim = sizes.stride**2 * sizes.channels
        if config.target != "pixels":
            teacher = self._teacher.network if self._teacher else backbone
            assert isinstance(teacher, Backbone)
            target_dim = teacher.config.width
        self.decoder = TokenDecoder(codes.dim, backbone, config.decoder_depth, target_dim)

    def _build_teacher(self, backbone: Backbone) -> Frozen | None:
        if self.config.target == "features":
            if (info := self.config.teacher_info) is None:  # only planned or counted
                return Frozen(build_backbone(backbone.config), copy.deepcopy(self.pixel_scale))
            scale = PixelScale(info.pixel_mean, info.pixel_std)
            return Frozen(build_backbone(info.backbone), scale)
        if self.config.target == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_RANDOM_TEACHER_SEED)
                teacher = build_backbone(backbone.config)
            return Frozen(teacher, copy.deepcopy(self.pixel_scale))
        return None

    @property
    def backbone(self) -> Backbone:  # type: ignore[override] - a module has one name only
        """The encoder."""
        return self.network.encoder

    def train(self, mode: bool = True) -> "Tokenizer":
        """As :meth:`torch.nn.Module.train`; a given encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.is_backbone_given:
            self.backbone.eval()
        return self

    def forward(self, batch: PairedBatch, step: int) -> StepOutput:
        """Mean of 1 − cosine, or of the squared error of pixels, over all patches; plus the
        commitment, in float32. ``explained`` is the share of the loss of the micro-batch's mean
        target that the codes save: 0 if they say nothing, at most 1.
        """
        images = self.pixel_scale(batch.images)
        features = self.backbone(images)
        targets = self._targets(images, features, batch)
        latents = self.network.latents(features)
        quantized = self.network.codebook(latents.detach(), batch.keys, step)
        predicted = self.decoder(latents + (quantized.vectors - latents).detach()).float()
        if self.config.target == "pixels":
            fidelity = F.mse_loss(predicted, targets)
            metrics = {"pixel_error": fidelity.detach()}
        else:
            fidelity = (1 - F.cosine_similarity(predicted, targets, dim=-1)).mean()
            metrics = {"cosine": 1 - fidelity.detach()}
        metrics["explained"] = 1 - fidelity.detach() / self._loss_of_mean(targets)
        commitment = F.mse_loss(latents, quantized.vectors)
        metrics |= {"commitment": commitment.detach(), **self.network.codebook.usage()}
        loss = fidelity + self.config.commitment * commitment
        return StepOutput(loss, metrics, self._observed(features, quantized, batch.numbers))

    def _observed(self, features: Features, quantized: Quantized, numbers: Tensor) -> Observed:
        """The mean of the patches, and the code of one patch per image, each at another place."""
        codes = quantized.codes
        places = (numbers * 7919 % codes.shape[1]).unsqueeze(1)
        is_started = self.network.codebook.is_started
        return Observed(
            features.patches.detach().mean(dim=1),
            codes.gather(1, places).squeeze(1) if is_started else None,
            self.config.num_codes,
        )

    def _loss_of_mean(self, targets: Tensor) -> Tensor:
        """The least loss of a decoder that knows no codes: of the (B, N, T) ``targets``' mean."""
        rows = targets.flatten(0, 1)
        if self.config.target == "pixels":
            loss = (rows - rows.mean(dim=0)).square().mean()
        else:  # the mean cosine with the direction of a mean of unit vectors is its length
            loss = 1 - F.normalize(rows, dim=1).mean(dim=0).norm()
        return loss.clamp(min=1e-6)  # 0 if all targets are the same

    @torch.no_grad()
    def _targets(self, images: Tensor, features: Features, batch: PairedBatch) -> Tensor:
        """(B, N, T) float32."""
        if self.config.target == "pixels":
            return patchify(images, self.backbone.config.stride)
        if self._teacher is not None:
            found = self._teacher(batch.given)
            assert isinstance(found, Features)
            features = found
        return features.patches.detach().float()

    def after_step(self, step: int) -> None:
        """Move the codebook."""
        self.network.codebook.move_codes()

    def exported(self) -> dict[str, nn.Module]:
        """The encoder alone, and the whole tokenizer."""
        return {"backbone": self.backbone, "tokenizer": self.network}

    def described(self) -> dict[str, dict[str, Any]]:
        """See :class:`Objective`: the sizes of the codebook."""
        return {"tokenizer": {"codes": self.config.codes(self.backbone.config)}}

    def frozen(self) -> list[Frozen]:
        """The teacher."""
        return [self._teacher] if self._teacher is not None else []

    def load_given(self, network: nn.Module) -> None:
        """See :class:`Objective`: the teacher, which for `kmeans` is the encoder."""
        own = self._teacher.network if self._teacher is not None else self.backbone
        own.load_state_dict(network.state_dict())

    @torch.no_grad()
    def panels(self, batch: PairedBatch) -> dict[str, Tensor]:
        """`tokens`: image | target | its reconstruction from codes | codes as colors, similar codes
        in similar colors, once there are any; and the features of the encoder.
        """
        shown = PairedBatch(*(tensor[:_SHOWN] for tensor in batch))
        images = self.pixel_scale(shown.images)
        panels = feature_panels(self.backbone, self.pixel_scale, images)
        features = self.backbone.forward(images)
        targets = self._targets(images, features, shown)
        codebook, latents = self.network.codebook, self.network.latents(features)
        codes = codebook.nearest(latents.flatten(0, 1)).view(latents.shape[:2])
        decoded = codebook.vectors[codes] if codebook.is_started else latents
        predicted = self.decoder(decoded).float()
        if self.config.target == "pixels":
            size = self.backbone.config.stride
            both = [self.pixel_scale.back(unpatchify(predicted, size, features.grid))]
        else:
            colors = principal_colors(F.normalize(torch.cat([targets, predicted]), dim=-1))
            both = [picture_of(part, features.grid) for part in colors.chunk(2)]
        columns = [self.pixel_scale.back(images), *both]
        if codebook.is_started:
            columns.append(picture_of(code_colors(codebook.vectors)[codes], features.grid))
        return {"tokens": rows_of(columns), **panels}
