"""Images to feature vectors: one decoding pass feeds all encoders, so baselines cost little.

float32 throughout: autocast would change the digits of results that are quoted for years.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_vit.data.access_plan import SequentialAccess
from ssl_vit.data.batches import Batches
from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import EvaluationBatches
from ssl_vit.data.labels import labeled_numbers
from ssl_vit.data.loader import LoadedBatches, LoaderSettings, build_loader
from ssl_vit.data.pixel_digest import DIGEST_BYTES
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.models.backbone import Backbone
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.progress import progress

# B images, N labeled images of a set, D features, S side length in pixels.

# Above it, a float32 sum of squares over a million images overflows.
_LARGEST = 1e15

# (B, 3, S, S) uint8 on the device → kind of feature → (B, D) float32.
Encoder = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of labeled images of a set, in index order, on the CPU."""

    by_encoder: dict[str, dict[str, Tensor]]
    """Encoder → kind of feature → (N, D) float32."""
    labels: Tensor
    """(N,) int64 class numbers of the set."""
    digests: np.ndarray
    """(N, 16) uint8 digests of the crops, see ``data.pixel_digest``."""


class BackboneEncoder(nn.Module):
    """A frozen backbone: its class token and the mean of its patch tokens, after the final norm.

    Args:
        backbone: The network; put into evaluation mode.
        pixel_mean, pixel_std: Per channel, for pixels in [0, 1].
    """

    def __init__(
        self,
        backbone: Backbone,
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
    numbers: np.ndarray | None = None,
    value_range: ValueRange | None = None,
) -> LabeledFeatures:
    """Run labeled images of a set once through all encoders.

    Args:
        encoders: Name → encoder; their parameters are on ``device``.
        crop: The crop of every image, the same for all encoders.
        batch_size: Images per forward pass; does not change the result.
        workers: Decoding processes; 0 decodes in this one.
        numbers: (N,) sample numbers, ascending; None: all that have a label.
        value_range: How values of more than 8 bits are shown.

    Raises:
        UserError: An image cannot be decoded, a shard is damaged or cannot be fetched, or features
            are not finite; names it.
    """
    if numbers is None:
        numbers = labeled_numbers(shards)
    digests = np.empty((len(numbers), DIGEST_BYTES), np.uint8)
    unusable = {name: np.zeros(len(numbers), bool) for name in encoders}
    found: dict[str, dict[str, Tensor]] = {name: {} for name in encoders}
    done = 0
    # TF32 convolutions would round a patch embedding to 10 bits on recent GPUs.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    batches = _open_batches(
        EvaluationBatches(shards, crop, value_range), numbers, batch_size, workers, device
    )
    title = Path(shards.source).name
    try:
        with torch.no_grad(), exact, progress(title, len(numbers), "images") as advance:
            for loaded in batches:
                pixels = loaded.batch.images.to(device, non_blocking=True)
                here = slice(done, done + len(pixels))
                digests[here] = loaded.batch.digests
                for name, encode in encoders.items():
                    for kind, values in encode(pixels).items():
                        if kind not in found[name]:
                            # One allocation: joining batches at the end would double the memory.
                            found[name][kind] = torch.empty(len(numbers), values.shape[1])
                        found[name][kind][here] = values
                        unusable[name][here] |= ~is_usable(found[name][kind][here])
                done += len(pixels)
                advance(len(pixels))
        batches.finish()
    finally:
        batches.close()
    assert done == len(numbers)
    _refuse_unusable(unusable, shards, numbers)
    labels = torch.from_numpy(shards.labels[numbers].astype(np.int64))
    return LabeledFeatures(found, labels, digests)


def is_usable(features: Tensor) -> np.ndarray:
    """(B,) bool: which of (B, D) float32 features are finite and not too large."""
    return (features.abs().amax(dim=1) < _LARGEST).numpy()  # false for NaN


def _refuse_unusable(
    unusable: Mapping[str, np.ndarray], shards: ShardSet, numbers: np.ndarray
) -> None:
    for name, places in unusable.items():
        if places.any():
            first = shards.key(int(numbers[places.argmax()]))
            raise UserError(
                f"the {name} features of {places.sum():,} of {len(places):,} images of "
                f"{shards.source} are not finite or too large to compute with, {first} first",
                "evaluate an earlier export of the run; its alarms.jsonl and nonfinite.jsonl show "
                "when training failed",
            )


def _open_batches(
    maker: EvaluationBatches,
    numbers: np.ndarray,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Batches:
    listed = [
        numbers[first : first + batch_size].tolist() for first in range(0, len(numbers), batch_size)
    ]
    settings = LoaderSettings(workers, prefetch=2, pin_memory=device.type == "cuda")
    loader = build_loader(maker, listed, batch_size, settings)
    shards = maker.shards
    prefetcher = ShardPrefetcher(
        shards.shards, shards.cache, SequentialAccess(shards.starts, numbers)
    )
    return LoadedBatches(loader, prefetcher, lambda batch: batch * batch_size)
