"""A visual tokenizer: from an image to one code for each patch."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone, Features
from ssl_vit.models.build import build_backbone
from ssl_vit.models.initialization import initialize
from ssl_vit.objectives.autocast import without_autocast
from ssl_vit.objectives.given import Codes, DalleConfig, GivenNetwork
from ssl_vit.objectives.tokenizer.codebook import Codebook
from ssl_vit.objectives.tokenizer.dalle import DalleEncoder

# B images, N patches, D width, C dimensions of a code.


class TokenizerNetwork(nn.Module):
    """Encoder, projection and codebook (Peng et al. 2022, arXiv 2208.06366).

    Args:
        encoder: A backbone.
        codes: Sizes of the codebook.
        codebook: Overrides the codebook, with its settings for training.
    """

    def __init__(self, encoder: Backbone, codes: Codes, codebook: Codebook | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.width
        self.project: nn.Module = nn.Identity()
        if codes.is_projected:
            self.project = nn.Sequential(
                nn.Linear(width, width), nn.Tanh(), nn.Linear(width, codes.dim)
            )
            initialize(self.project, "truncated_normal")
        self.codebook = codebook or Codebook(codes.num, codes.dim)

    def latents(self, features: Features) -> Tensor:
        """(B, N, C) float32 unit vectors, comparable with codes."""
        # In float32: nearest neighbors among thousands of codes differ by less than bfloat16 shows.
        with without_autocast(features.patches):
            return F.normalize(self.project(features.patches.float()), dim=-1)

    def code_vectors(self) -> Tensor:
        """(K, C), near to each other for codes of similar patches."""
        return self.codebook.vectors

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalized → (B, N) int64 codes."""
        latents = self.latents(self.encoder(images))
        return self.codebook.nearest(latents.flatten(0, 1)).view(latents.shape[:2])


def build_tokenizer(given: GivenNetwork) -> TokenizerNetwork | DalleEncoder:
    """The network that a description describes, newly initialized."""
    assert given.codes is not None
    if isinstance(given.backbone, DalleConfig):
        return DalleEncoder(given.backbone)
    return TokenizerNetwork(build_backbone(given.backbone), given.codes)
