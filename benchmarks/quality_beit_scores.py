"""Three readouts of a network for `quality.py --only beit`, each by the protocols of `ssl-vit
eval`, and how many codes an untrained tokenizer uses. Import only after `compute_beside_workers`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from quality_beit_table import READOUTS, Codes
from quality_scores import Images, ScoreBook
from quality_table import Score
from torch import Tensor

from ssl_vit.data.crops import CenterCrop
from ssl_vit.distributed import cores_here
from ssl_vit.exports.folder import read_export_info, read_tokenizer_info
from ssl_vit.exports.loading import load_backbone, load_tokenizer
from ssl_vit.models.backbone import TokenBackbone
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.run.config import RunConfig
from ssl_vit_eval import knn, linear
from ssl_vit_eval.baselines import BATCH_SIZES, choose_device, random_backbone
from ssl_vit_eval.features import BackboneEncoder, extract


class ReadoutEncoder(BackboneEncoder):
    """A frozen backbone with a third kind of feature: the mean of the patch tokens after about two
    thirds of its blocks, without the final norm.
    """

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) uint8 → ``cls``, ``mean`` and ``inner``, each (B, D) float32."""
        backbone = self.backbone
        assert isinstance(backbone, TokenBackbone)
        images = self.pixel_scale(pixels)
        tokens = backbone.embed(images)
        place = inner_block(len(backbone.units()))
        features, (inner,) = backbone.encode_with_inner(tokens, (place,), backbone.grid_of(images))
        return {
            "cls": features.cls,
            "mean": features.patches.mean(dim=1),
            "inner": inner[:, -tokens.shape[1] :].mean(dim=1),
        }


def inner_block(depth: int) -> int:
    """Number of blocks before the inner readout."""
    return max(1, round(2 * depth / 3))


class ReadoutImages(Images):
    """Labeled train and test images on which every readout is scored by itself."""

    def readouts_of_export(self, export: Path) -> dict[str, Score]:
        """Scores of an export."""
        info = read_export_info(export)
        encoder = ReadoutEncoder(load_backbone(export), info.pixel_mean, info.pixel_std)
        return self._readouts(encoder, info.backbone.height_width)

    def readouts_of_untrained(self, config: RunConfig) -> dict[str, Score]:
        """Scores of a run's network before training."""
        network = random_backbone(config.backbone)
        encoder = ReadoutEncoder(network, config.data.pixel_mean, config.data.pixel_std)
        return self._readouts(encoder, config.backbone.height_width)

    def _readouts(self, encoder: ReadoutEncoder, size: tuple[int, int]) -> dict[str, Score]:
        device = choose_device("auto")
        # Each kind of feature is a row of its own, so that none is chosen over the others.
        together = self.compare(encoder.to(device), size, device)
        kinds = together.rows[""]
        rows = {kind: {kind: split} for kind, split in kinds.items()}
        alone = type(together)(
            rows, together.train_labels, together.test_labels, together.num_classes
        )
        neighbors = knn.evaluate(alone, device).rows
        probes = linear.evaluate(alone, device, linear.LinearSettings()).rows
        return {
            near.name: Score(near.accuracy, probe.accuracy)
            for near, probe in zip(neighbors, probes, strict=True)
        }

    def codes_of(self, tokenizer: Path, images_per_step: int) -> Codes:
        """How many codes a tokenizer gives to as many images as a step has: means over the train
        images, whole and in their order.
        """
        info, network = read_tokenizer_info(tokenizer), load_tokenizer(tokenizer)
        scale = PixelScale(info.pixel_mean, info.pixel_std)
        device = choose_device("auto")
        network.to(device), scale.to(device)
        found = extract(
            {"": lambda pixels: {"codes": network(scale(pixels)).float()}},
            self.train,
            CenterCrop(info.backbone.height_width, 1.0),
            BATCH_SIZES[device.type],
            max(1, min(8, cores_here() - 1)),
            device,
        )
        parts = found.by_encoder[""]["codes"].long().split(images_per_step)
        full = [part for part in parts if len(part) == images_per_step] or parts
        usages = [usage(part, info.codes.num) for part in full]
        used, perplexity = (fmean(values) for values in zip(*usages, strict=True))
        return Codes(used, perplexity, info.codes.num)


def usage(codes: Tensor, count: int) -> tuple[float, float]:
    """The share of codes that occur, and the perplexity of their distribution.

    Args:
        codes: (B, N) int64.
        count: K.
    """
    hits = codes.flatten().bincount(minlength=count).double()
    shares = hits / hits.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float((hits > 0).double().mean()), float(entropy.exp())


def find_readouts(
    book: ScoreBook, name: str, what: str, find: Callable[[], dict[str, Score]]
) -> dict[str, Score]:
    """Scores by readout, from the book or computed all at once.

    Args:
        book: Scores found so far.
        name: Key in the book, to which the readout is added.
        what: Description of what is evaluated, to print.
        find: Computes the scores.
    """
    once = functools.cache(find)

    def of(readout: str) -> Score:
        return book.of(
            f"{name}, {readout}", f"{what}, {READOUTS[readout]}", lambda: once()[readout]
        )

    return {readout: of(readout) for readout in READOUTS}
