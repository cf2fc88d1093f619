"""The backbone that a classifier was fine-tuned from, frozen: what fine-tuning has brought is the
difference to its linear probe and its k-NN, on the same images at the same resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_vit.data.labels import check_labels, hold_out, labeled_numbers, match_labels
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import find_export
from ssl_vit.files import path_of
from ssl_vit.run.folder import RunFolder
from ssl_vit_eval.classes import LabeledImages
from ssl_vit_eval.classifier import Beside, ClassifierInputs
from ssl_vit_eval.metrics import Scores

if TYPE_CHECKING:
    import torch

    from ssl_vit_eval.baselines import Comparison

_MOST = 100_000  # training images whose features are computed
_LEAST_K = 10


@dataclass(frozen=True)
class FrozenStart:
    """The export that a run was started from, and the training images."""

    export: Path
    train: ShardSet
    images: LabeledImages
    """Those that are used, with their classes by the classifier's numbers."""
    notes: tuple[str, ...]


def find_start(inputs: ClassifierInputs, train: str) -> FrozenStart | Beside:
    """Find the frozen backbone, or a note that says why there is none; needs no torch.

    Args:
        inputs: The classifier, in its run folder.
        train: Labeled shards, those that it was trained on.

    Raises:
        UserError: The shards cannot be opened, or have no image of the classifier's classes.
    """
    shards, info = open_shards(train), inputs.info
    check_labels(shards, least=1)
    if info.label_separator:
        return _no_rows("linear probe and k-NN support one class per image")
    labels, known, unknown = match_labels(shards, info.classes, "")
    if not known.any():
        raise UserError(
            f"--train {train} has no image of the classifier's classes (it has "
            f"{', '.join(unknown[:8])})",
            "give the shards that it was trained on",
        )
    notes = []
    if unknown:
        count = (~known).sum()
        notes.append(f"{count:,} images of --train are of other classes and are left out.")
    numbers, labels = labeled_numbers(shards)[known], labels[known]
    if len(numbers) > _MOST:
        some = hold_out(labels, _MOST / len(numbers))[1]
        numbers, labels = numbers[some], labels[some]
        notes.append(f"The frozen rows learn from {len(some):,} of the training images.")
    found = _export_of(inputs)
    if isinstance(found, str):
        return _no_rows(found)
    return FrozenStart(found, shards, LabeledImages(numbers, labels), tuple(notes))


def _no_rows(why: str) -> Beside:
    return Beside(notes=(f"No frozen backbone beside it: {why}.",))


def _export_of(inputs: ClassifierInputs) -> Path | str:
    """The export that the classifier's run was started from, or why there is none."""
    export = inputs.export.resolve()
    folder = RunFolder(export.parent.parent)
    if export.parent.name != "exports" or not folder.config.is_file():
        return f"{export} is not in a run folder, so its start is unknown"
    source = folder.read_config().resume_from
    if not source:
        return "the run was started from random weights"
    try:
        return find_export(path_of(source))
    except UserError as error:
        return error.problem


def beside_of(
    inputs: ClassifierInputs, start: FrozenStart | Beside, device: "torch.device"
) -> Beside:
    """Scores of the frozen backbone's linear probe and k-NN on the test images; where they cannot
    be found, a note that says why.
    """
    if isinstance(start, Beside):
        return start
    try:
        return _rows_beside(inputs, start, device)
    except UserError as error:
        return _no_rows(error.problem)


def _rows_beside(inputs: ClassifierInputs, start: FrozenStart, device: "torch.device") -> Beside:
    from ssl_vit.models.build import build_backbone
    from ssl_vit.run.start import load_exported
    from ssl_vit_eval.baselines import Comparer, Side
    from ssl_vit_eval.features import BackboneEncoder

    info = inputs.info
    backbone = build_backbone(info.backbone)
    load_exported(backbone, str(start.export))
    encoder = BackboneEncoder(backbone, info.pixel_mean, info.pixel_std).to(device)
    compare = Comparer(inputs.reading, info.backbone.height_width, inputs.values, device)
    comparison = compare(
        {"frozen": encoder},
        Side(start.train, start.images),
        Side(inputs.test, LabeledImages(inputs.numbers, inputs.labels)),
        len(info.classes),
    )
    rows, notes = _rows(comparison, start.images.labels, device)
    assert comparison.overlap is not None
    if repeated := comparison.overlap.count:
        notes.append(
            f"{repeated:,} of {len(inputs.labels):,} test images are also in --train, with "
            "identical pixels in the crop."
        )
    return Beside(rows, (*start.notes, *notes))


def _rows(
    comparison: "Comparison", labels: np.ndarray, device: "torch.device"
) -> tuple[dict[str, Scores], list[str]]:
    from ssl_vit_eval import knn, linear

    rows: dict[str, Scores] = {}
    notes = [
        "The frozen rows learn from all of --train, held-out images included; k and kind of "
        "feature of k-NN are the best ones on the test images, as in `ssl-vit eval knn`."
    ]
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
