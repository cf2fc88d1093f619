"""Baselines: raw pixels, and the same network untrained. One decoding pass serves all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.exports.loading import load_backbone
from ssl_vit.models.backbone import Backbone
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit_eval.classes import LabeledImages
from ssl_vit_eval.features import BackboneEncoder, Encoder, extract
from ssl_vit_eval.inputs import Inputs, Reading
from ssl_vit_eval.metrics import Scores, score
from ssl_vit_eval.overlap import Overlap, find_overlap
from ssl_vit_eval.results import PIXELS, PRETRAINED, RANDOM

RANDOM_SEED = 0
PIXEL_SIDE = 32
# Defaults. On a CPU more images do not fit into its cache: 256 at once were 1.4 times slower.
BATCH_SIZES = {"cpu": 32, "cuda": 256}


class Split(NamedTuple):
    """One kind of feature of both sets, float32 on the CPU."""

    train: Tensor
    """(N, D) features of the train set."""
    test: Tensor
    """(M, D) features of the test set."""


@dataclass(frozen=True)
class Comparison:
    """The features and labels from which a protocol computes its rows."""

    rows: dict[str, dict[str, Split]]
    """Row → kind of feature → features; in the order in which rows are printed."""
    train_labels: Tensor
    """(N,) int64 class numbers."""
    test_labels: Tensor
    """(M,) int64 class numbers."""
    num_classes: int
    overlap: Overlap | None = None
    """Test images that are also in train; None if they were not searched for."""

    @property
    def majority(self) -> Scores:
        """Test scores of always predicting the most frequent class of train."""
        most_frequent = int(self.train_labels.bincount(minlength=self.num_classes).argmax())
        return self.score(torch.full_like(self.test_labels, most_frequent))

    def score(self, predictions: Tensor) -> Scores:
        """The test scores of (M,) int64 class numbers."""
        labels = self.test_labels.cpu().numpy()
        return score(labels, predictions.cpu().numpy(), self.num_classes)


class Side(NamedTuple):
    """The images that an evaluation uses of a set."""

    shards: ShardSet
    images: LabeledImages


@dataclass(frozen=True)
class Comparer:
    """Computes the features of both sets: how images are read, and where."""

    reading: Reading
    size: tuple[int, int]
    """(height, width) of the crops, in pixels."""
    values: ValueRange | None
    """How values of more than 8 bits are shown."""
    device: torch.device

    def __call__(
        self, encoders: Mapping[str, Encoder], train: Side, test: Side, num_classes: int
    ) -> Comparison:
        """Features of all encoders, in one pass over each set.

        Args:
            encoders: Row → encoder, on ``device``.
            train, test: The images.
            num_classes: C.

        Raises:
            UserError: See :func:`~ssl_vit_eval.features.extract`.
        """
        ours, theirs = (
            extract(
                encoders,
                side.shards,
                CenterCrop(self.size, self.reading.crop_ratio),
                self.reading.batch_size or BATCH_SIZES[self.device.type],
                self.reading.workers,
                self.device,
                side.images.numbers,
                self.values,
            )
            for side in (train, test)
        )
        rows = {
            name: {kind: Split(own, theirs.by_encoder[name][kind]) for kind, own in kinds.items()}
            for name, kinds in ours.by_encoder.items()
        }
        labels, test_labels = train.images.labels, test.images.labels
        return Comparison(
            rows,
            torch.from_numpy(labels),
            torch.from_numpy(test_labels),
            num_classes,
            find_overlap(ours.digests, labels, theirs.digests, test_labels),
        )


def collect(inputs: Inputs, device: torch.device) -> Comparison:
    """Features of the pre-trained network, of the same network untrained, and raw pixels."""
    info = inputs.info
    networks = {
        PRETRAINED: load_backbone(inputs.export),
        RANDOM: random_backbone(info.backbone),
    }
    encoders: dict[str, Encoder] = {
        name: BackboneEncoder(network, info.pixel_mean, info.pixel_std).to(device)
        for name, network in networks.items()
    }
    encoders[PIXELS] = raw_pixels
    compare = Comparer(inputs.reading, info.backbone.height_width, inputs.values, device)
    classes = inputs.classes
    found = compare(
        encoders,
        Side(inputs.train, classes.train),
        Side(inputs.test, classes.test),
        inputs.num_classes,
    )
    pixels = {kind: remove_mean(split) for kind, split in found.rows[PIXELS].items()}
    return replace(found, rows=found.rows | {PIXELS: pixels})


def random_backbone(config: VitConfig) -> Backbone:
    """The same architecture, randomly initialized with a fixed seed; keeps the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return build_backbone(config).eval()


def raw_pixels(pixels: Tensor) -> dict[str, Tensor]:
    """The crop itself as features, averaged down to 32×32 if it is larger.

    Args:
        pixels: (B, 3, S, S) uint8.

    Returns:
        ``pixels``: (B, 3·32·32) float32 in [0, 1].
    """
    side = min(PIXEL_SIDE, pixels.shape[-1])
    small = F.interpolate(pixels.float() / 255, size=(side, side), mode="area")
    return {"pixels": small.flatten(1)}


def remove_mean(split: Split) -> Split:
    """Subtract train's mean from both sets: otherwise brightness dominates the similarity."""
    mean = split.train.mean(dim=0)
    return Split(split.train - mean, split.test - mean)


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA if there is one.

    Raises:
        UserError: A CUDA device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} does not exist: torch finds {torch.cuda.device_count()} CUDA devices",
            "use --device auto",
        )
    return device
