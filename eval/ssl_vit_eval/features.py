"""Images to feature vectors: one decoding pass feeds every encoder, so a baseline costs no second.

float32 throughout: an evaluation is run once and quoted for years; autocast would move its digits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_vit.data.augment import CenterCrop
from ssl_vit.data.dataset import EvaluationBatches
from ssl_vit.data.keeper import Keeper
from ssl_vit.data.labels import labelled_numbers
from ssl_vit.data.loader import Batches, LoadedBatches, LoaderSettings, build_loader
from ssl_vit.data.needs import SequentialNeeds
from ssl_vit.data.shards import ShardSet
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.progress import progress

# B images, N labelled images of a set, D features, S pixels a side.

# (B, 3, S, S) uint8 on the device → kind of feature → (B, D) float32.
Encoder = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of every labelled image of a set, in index order, on the CPU."""

    by_encoder: dict[str, dict[str, Tensor]]
    """Encoder → kind of feature → (N, D) float32."""
    labels: Tensor
    """(N,) int64 class numbers."""


class BackboneEncoder(nn.Module):
    """A frozen backbone: its class token and the mean of its patch tokens, after the final norm.

    Args:
        backbone: Put into evaluation mode.
        pixel_mean, pixel_std: Per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self.pixel_scale = PixelScale(pixel_mean, pixel_std)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) uint8 → ``cls`` and ``mean``, each (B, D) float32."""
        features = self.backbone(self.pixel_scale(pixels))
        return {"cls": features.cls, "mean": features.patches.mean(dim=1)}


def extract(
    encoders: Mapping[str, Encoder],
    shards: ShardSet,
    crop: CenterCrop,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> LabelledFeatures:
    """Run every labelled image of a set once through all encoders.

    Args:
        encoders: By name; their parameters are on ``device``.
        crop: Gives every encoder the same pixels.
        batch_size: Images a forward pass; does not change the result.
        workers: Processes that decode; 0 decodes in this one.

    Raises:
        UserError: An image cannot be decoded, or a shard is damaged or cannot be had; names it.
    """
    numbers = labelled_numbers(shards)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in encoders}
    done = 0
    # TF32 convolutions would round a patch embedding to 10 bits on recent GPUs.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    batches = _open_batches(shards, numbers, crop, batch_size, workers, device)
    title = Path(shards.source).name
    try:
        with torch.no_grad(), exact, progress(title, len(numbers), "images") as advance:
            for loaded in batches:
                pixels = loaded.batch.images.to(device, non_blocking=True)
                for name, encode in encoders.items():
                    for kind, values in encode(pixels).items():
                        if kind not in found[name]:
                            # One allocation: joining batches at the end would need the set twice.
                            found[name][kind] = torch.empty(len(numbers), values.shape[1])
                        found[name][kind][done : done + len(values)] = values
                done += len(pixels)
                advance(len(pixels))
        batches.finish()
    finally:
        batches.close()
    assert done == len(numbers)
    labels = torch.from_numpy(shards.labels[numbers].astype(np.int64))
    return LabelledFeatures(found, labels)


def _open_batches(
    shards: ShardSet,
    numbers: np.ndarray,
    crop: CenterCrop,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Batches:
    listed = [
        numbers[first : first + batch_size].tolist() for first in range(0, len(numbers), batch_size)
    ]
    settings = LoaderSettings(workers, prefetch=2, pin_memory=device.type == "cuda")
    loader = build_loader(EvaluationBatches(shards, crop), listed, batch_size, settings)
    keeper = Keeper(shards.shards, shards.cache, SequentialNeeds(shards.starts, numbers))
    return LoadedBatches(loader, keeper, lambda batch: batch * batch_size)
