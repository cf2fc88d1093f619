"""BEiT: hide blocks of patches, predict which visual token a frozen tokenizer gives each of them.

Bao et al. 2021, "BEiT: BERT Pre-Training of Image Transformers", arXiv 2106.08254; with
``aggregate_after``, Peng et al. 2022 (BEiT v2), arXiv 2208.06366. Logits are computed for hidden
patches only, the only ones in the loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.backbone import Features, TokenBackbone
from ssl_vit.models.config import VitConfig
from ssl_vit.models.patches import blank_patches, put, take
from ssl_vit.objectives.beit.aggregation import PatchAggregation
from ssl_vit.objectives.beit.config import BeitConfig
from ssl_vit.objectives.beit.views import BeitBatch
from ssl_vit.objectives.color_jitter import apply_color_factors
from ssl_vit.objectives.frozen import Frozen
from ssl_vit.objectives.given import Codes, GivenNetwork
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.objective import Observed, StepOutput
from ssl_vit.objectives.one_crop.filled import FilledObjective
from ssl_vit.objectives.pictures import code_colors, feature_panels, picture_of, rows_of
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.ranks import sum_over_ranks
from ssl_vit.objectives.tokenizer.codebook import hits_of
from ssl_vit.objectives.tokenizer.dalle import DalleEncoder
from ssl_vit.objectives.tokenizer.network import TokenizerNetwork, build_tokenizer

# B images, N patches, M of them hidden, D width, K codes.

_SHOWN = 8  # images in a panel
_COUNTS_MOMENTUM = 0.99
_USUAL_CODE_DIM = 32


class Unigram(nn.Module):
    """How often each token is: what a network that does not look at the image could know.

    Args:
        num_codes: K.
    """

    counts: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_codes))
        self._step, self._new = -1, self.counts

    @torch.no_grad()
    def forward(self, tokens: Tensor, step: int) -> dict[str, Tensor]:
        """Cross-entropy and accuracy of guessing by the frequencies in earlier steps.

        Args:
            tokens: (B, M) int64.
            step: Optimizer step.
        """
        if self.training:
            if step != self._step:
                self._step, self._new = step, torch.zeros_like(self.counts)
            self._new = self._new + hits_of(tokens, len(self.counts)).float()
        shares = (self.counts + 1) / (self.counts.sum() + len(self.counts))
        return {
            "unigram_loss": -shares.log()[tokens].mean(),
            "unigram_accuracy": (tokens == self.counts.argmax()).float().mean(),
        }

    @torch.no_grad()
    def add_counts(self) -> None:
        """Add the tokens of this step on all ranks to the moving counts."""
        self.counts.mul_(_COUNTS_MOMENTUM).add_(sum_over_ranks(self._new))
        self._step = -1


class Beit(FilledObjective):
    """Backbone, mask token, a linear layer, and the frozen tokenizer."""

    def __init__(
        self, config: BeitConfig, backbone: TokenBackbone, pixel_scale: PixelScale
    ) -> None:
        super().__init__(config, backbone, pixel_scale, config.num_codes)
        self.config = config
        self.aggregation = PatchAggregation(config, backbone) if config.aggregate_after else None
        self.unigram = Unigram(config.num_codes)
        given = config.tokenizer_info or _usual_tokenizer(config, backbone)
        scale = PixelScale(given.pixel_mean, given.pixel_std)
        self._tokenizer = Frozen(build_tokenizer(given), scale)

    def forward(self, batch: BeitBatch, step: int) -> StepOutput:
        """Mean cross-entropy of the tokens of hidden patches, in float32; with
        aggregation the sum of both predictions'.
        """
        images, tokens = self._images_and_tokens(batch)
        _, places = visible_and_hidden(batch.hidden, self.num_hidden)
        targets = tokens.gather(1, places)
        logits, features, early = self._predict(images, batch.hidden, places)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        metrics = {
            "token_loss": loss.detach(),
            "token_accuracy": (logits.detach().argmax(dim=2) == targets).float().mean(),
            **self.unigram(targets, step),
        }
        if early is not None:
            early_loss = F.cross_entropy(early.flatten(0, 1), targets.flatten())
            metrics["aggregated_loss"] = early_loss.detach()
            loss = loss + early_loss
        return StepOutput(loss, metrics, Observed(features.patches.detach().mean(dim=1)))

    def _predict(
        self, images: Tensor, hidden: Tensor, places: Tensor
    ) -> tuple[Tensor, Features, Tensor | None]:
        """(B, M, K) float32 logits at the (B, M) hidden ``places``, the features they are from, and
        the logits of the patch aggregation.
        """
        early = None
        if self.aggregation is None:
            features = self.backbone(images, hidden, self.mask_token)
        else:
            features, aggregated = self.aggregation(self.backbone, images, hidden, self.mask_token)
            early = self.predict(take(aggregated, places)).float()
        return self.predict(take(features.patches, places)).float(), features, early

    @torch.no_grad()
    def _images_and_tokens(self, batch: BeitBatch) -> tuple[Tensor, Tensor]:
        """The normalized crops, and (B, N) int64 tokens of the same crops in the same colors."""
        images = self._colored(batch.images, batch.jitter)
        given = images
        if batch.given_images.numel():
            given = self._colored(batch.given_images, batch.jitter)
        tokens = self._tokenizer(given)
        assert isinstance(tokens, Tensor)
        return self.pixel_scale(images), tokens

    def _colored(self, images: Tensor, jitter: Tensor) -> Tensor:
        return apply_color_factors(images, jitter) if self.config.color_jitter else images

    def after_step(self, step: int) -> None:
        """Count the step's tokens."""
        self.unigram.add_counts()

    def frozen(self) -> list[Frozen]:
        """The tokenizer."""
        return [self._tokenizer]

    def load_given(self, network: nn.Module) -> None:
        """See :class:`Objective`: the tokenizer."""
        self._tokenizer.network.load_state_dict(network.state_dict())

    @torch.no_grad()
    def panels(self, batch: BeitBatch) -> dict[str, Tensor]:
        """`tokens`: image | visible patches | its tokens as colors | the same with those of hidden
        patches as predicted; and the features of the whole image.
        """
        shown = BeitBatch(*(tensor[:_SHOWN] for tensor in batch))
        images, tokens = self._images_and_tokens(shown)
        panels = feature_panels(self.backbone, self.pixel_scale, images)
        _, places = visible_and_hidden(shown.hidden, self.num_hidden)
        logits, features, _ = self._predict(images, shown.hidden, places)
        tokenizer = self._tokenizer.network
        assert isinstance(tokenizer, TokenizerNetwork | DalleEncoder)
        colors = code_colors(tokenizer.code_vectors())
        predicted = put(colors[logits.argmax(dim=2)], places, into=colors[tokens])
        seen = blank_patches(images, shown.hidden, self.backbone.config.stride)
        columns = [
            *(self.pixel_scale.back(each) for each in (images, seen)),
            *(picture_of(each, features.grid) for each in (colors[tokens], predicted)),
        ]
        return {"tokens": rows_of(columns), **panels}


def _usual_tokenizer(config: BeitConfig, backbone: TokenBackbone) -> GivenNetwork:
    """The tokenizer of a run that is only planned: as large as the backbone."""
    sizes = backbone.config
    assert isinstance(sizes, VitConfig)
    plain = {"stem": "patch", "position": "learned", "layer_scale": 0.0, "drop_path": 0.0}
    return GivenNetwork(
        sha256="",
        backbone=sizes.model_copy(update=plain),
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        codes=Codes(num=config.num_codes, dim=_USUAL_CODE_DIM, is_projected=True),
    )
