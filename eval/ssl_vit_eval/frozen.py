"""The backbone that a classifier was fine-tuned from, frozen: what fine-tuning has brought is the
difference to its linear probe and its k-NN, on the same images at the same resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.labels import hold_out, labeled_numbers, renumbered
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import find_export
from ssl_vit.files import path_of
from ssl_vit.models.build import build_backbone
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.start import load_exported
from ssl_vit_eval import knn, linear
from ssl_vit_eval.baselines import BATCH_SIZES, Comparison, Split
from ssl_vit_eval.classifier import Beside, ClassifierInputs
from ssl_vit_eval.features import BackboneEncoder, extract
from ssl_vit_eval.metrics import Scores
from ssl_vit_eval.overlap import find_overlap

_MOST = 100_000
"""Training images whose features are computed."""
_LEAST_K = 10


@dataclass(frozen=True)
class FrozenStart:
    """The export that a run was started from, and the run's training images."""

    export: Path
    train: str


def frozen_start(inputs: ClassifierInputs, train: str) -> FrozenStart | str:
    """Where the frozen backbone is, or why there is none.

    Args:
        inputs: The classifier, in its run folder.
        train: The labeled shards that it was trained on.
    """
    export = inputs.export.resolve()
    folder = RunFolder(export.parent.parent)
    if export.parent.name != "exports" or not folder.config.is_file():
        return f"{export} is in no run folder, so its start is unknown"
    if inputs.info.label_separator:
        return "linear probe and k-NN know one class an image"
    source = folder.read_config().resume_from
    if not source:
        return "the run was started from random weights"
    try:
        return FrozenStart(find_export(path_of(source)), train)
    except UserError as error:
        return error.problem


def rows_beside(inputs: ClassifierInputs, start: FrozenStart, device: torch.device) -> Beside:
    """Scores of the frozen backbone's linear probe and k-NN on the test images.

    Raises:
        UserError: The backbone or an image cannot be read.
    """
    info = inputs.info
    train = open_shards(start.train)
    chosen = labeled_numbers(train)
    labels = renumbered(train, info.classes)
    chosen, labels = chosen[labels >= 0], labels[labels >= 0]
    notes = []
    if len(chosen) > _MOST:
        some = hold_out(labels, _MOST / len(chosen))[1]
        notes.append(f"The frozen backbone's rows learn from {len(some):,} of the training images.")
        chosen, labels = chosen[some], labels[some]
    backbone = build_backbone(info.backbone)
    load_exported(backbone, str(start.export))
    encoder = BackboneEncoder(backbone, info.pixel_mean, info.pixel_std).to(device)
    reading = inputs.reading
    ours, theirs = (
        extract(
            {"frozen": encoder},
            shards,
            CenterCrop(info.backbone.height_width, reading.crop_ratio),
            reading.batch_size or BATCH_SIZES[device.type],
            reading.workers,
            device,
            numbers,
            inputs.values,
        )
        for shards, numbers in ((train, chosen), (inputs.test, inputs.numbers))
    )
    kinds = {
        kind: Split(values, theirs.by_encoder["frozen"][kind])
        for kind, values in ours.by_encoder["frozen"].items()
    }
    comparison = Comparison(
        {"frozen": kinds},
        torch.from_numpy(labels),
        torch.from_numpy(inputs.labels),
        len(info.classes),
        find_overlap(ours.digests, labels, theirs.digests, inputs.labels),
    )
    rows, more = _rows(comparison, labels, device)
    overlap = comparison.overlap
    if overlap is not None and overlap.count:
        more.append(
            f"{overlap.count:,} of {len(inputs.labels):,} test images are also in --train, with "
            "identical pixels in the crop."
        )
    return Beside(rows, (*notes, *more))


def _rows(
    comparison: Comparison, labels: np.ndarray, device: torch.device
) -> tuple[dict[str, Scores], list[str]]:
    rows: dict[str, Scores] = {}
    notes: list[str] = []
    if np.bincount(labels).max() < 2:
        notes.append("No linear probe: no class has two training images to choose its rate with.")
    else:
        try:
            found = linear.evaluate(comparison, device, linear.LinearSettings())
            _add(rows, "frozen, linear probe", found.rows[0].best.scores)
        except UserError as error:
            notes.append(f"No linear probe: {error.problem}.")
    ks: Sequence[int] = () if len(labels) >= _LEAST_K else (len(labels),)
    _add(rows, "frozen, k-NN", knn.evaluate(comparison, device, ks).rows[0].best.scores)
    return rows, notes


def _add(rows: dict[str, Scores], name: str, scores: Scores | None) -> None:
    assert scores is not None
    rows[name] = scores
