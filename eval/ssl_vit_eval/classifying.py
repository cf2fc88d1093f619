"""Images to the probabilities of a classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import Canvases, canvas_bytes
from ssl_vit.data.decode import Picture
from ssl_vit.data.render import render
from ssl_vit.data.values import ValueRange
from ssl_vit.exports.folder import ClassifierInfo
from ssl_vit.exports.loading import load_classifier
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit_eval.baselines import BATCH_SIZES
from ssl_vit_eval.classifier import ClassifierInputs
from ssl_vit_eval.features import extract


class _Probabilities(nn.Module):
    """A classifier with its normalization of pixels."""

    def __init__(self, export: Path, info: ClassifierInfo) -> None:
        super().__init__()
        self.classifier = load_classifier(export)
        self.pixel_scale = PixelScale(info.pixel_mean, info.pixel_std)
        self.is_binary, self.is_multi_label = info.loss == "binary", bool(info.label_separator)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 → ``probabilities``, (B, C) float32 that sum to 1. Those of a network
        trained with `loss=binary` are scaled to it, unless an image may be of several classes.
        """
        logits = self.classifier(self.pixel_scale(pixels))[0].float()
        if self.is_multi_label:
            return {"probabilities": logits.sigmoid()}
        if not self.is_binary:
            return {"probabilities": logits.softmax(dim=1)}
        # In logarithms: all may be 0 in float32.
        return {"probabilities": F.logsigmoid(logits).softmax(dim=1)}


def probabilities_of(inputs: ClassifierInputs, device: torch.device) -> np.ndarray:
    """(M, C) float32 probabilities of the test images.

    Raises:
        UserError: An image cannot be read, or a probability is not finite.
    """
    info, reading = inputs.info, inputs.reading
    found = extract(
        {"classifier": _Probabilities(inputs.export, info).to(device)},
        inputs.test,
        CenterCrop(info.backbone.height_width, reading.crop_ratio),
        reading.batch_size or BATCH_SIZES[device.type],
        reading.workers,
        device,
        inputs.numbers,
        inputs.values,
    )
    return found.by_encoder["classifier"]["probabilities"].numpy()


class ImageClassifier:
    """From the bytes of image files to probabilities.

    Args:
        export: Folder of the classifier.
        info: Its description.
        values: How values of more than 8 bits are shown.
        crop_ratio: Side of the center crop over the image's shorter side.
        device: Where it computes.
    """

    def __init__(
        self,
        export: Path,
        info: ClassifierInfo,
        values: ValueRange | None,
        crop_ratio: float,
        device: torch.device,
    ) -> None:
        self.network = _Probabilities(export, info).to(device)
        self.crop = CenterCrop(info.backbone.height_width, crop_ratio)
        self.values, self.device = values, device
        self.batch_size = BATCH_SIZES[device.type]

    @torch.no_grad()
    def __call__(self, files: Sequence[bytes | str]) -> list[np.ndarray | str]:
        """For each image (C,) float32 probabilities, or why it could not be decoded.

        Args:
            files: The bytes of each, or why they could not be read.
        """
        memory = torch.empty(canvas_bytes([(1, self.crop.size)], len(files)), dtype=torch.uint8)
        canvases = Canvases([(1, self.crop.size)], len(files), memory)
        problems: dict[int, str] = {}
        for place, data in enumerate(files):
            try:
                if isinstance(data, str):
                    raise ValueError(data)
                picture = Picture(data, self.values)
                crop = self.crop(picture.height, picture.width)
                render(picture, [crop], canvases.of_image(place))
            except ValueError as error:
                problems[place] = str(error)
        good = [place for place in range(len(files)) if place not in problems]
        found: list[np.ndarray | str] = [problems.get(place, "") for place in range(len(files))]
        if good:
            pixels = canvases.crops()[0][0][good].to(self.device)
            rows = self.network(pixels)["probabilities"].cpu().numpy()
            for place, row in zip(good, rows, strict=True):
                found[place] = row if np.isfinite(row).all() else "the network's output is NaN"
        return found
