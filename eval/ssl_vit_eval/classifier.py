"""`ssl-vit eval classifier`: a fine-tuned network on labeled test images."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_vit.config import to_plain
from ssl_vit.data.labels import check_labels, labeled_numbers, match_labels
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ClassifierInfo, find_export, read_classifier_info
from ssl_vit.files import replacing
from ssl_vit.monitors.ranking import mean_of
from ssl_vit_eval.confusion_picture import draw_confusion
from ssl_vit_eval.inputs import Reading, make_evals_folder, range_of
from ssl_vit_eval.metrics import Scores, class_scores, score, summarize
from ssl_vit_eval.multi_label import measure_multi_label, print_multi_label
from ssl_vit_eval.probabilities import (
    auroc_by_class,
    average_precision_by_class,
    calibration_error,
    in_top,
    log_loss,
)
from ssl_vit_eval.tables import class_table, percent, print_table, with_interval

FORMAT = "ssl-vit-classifier-evaluation-1"
_TOP = 5
_NAMED = 8  # classes in a message


@dataclass(frozen=True)
class ClassifierInputs:
    """A classifier and labeled test images of its classes."""

    export: Path
    """Folder of the export."""
    info: ClassifierInfo
    test: ShardSet
    numbers: np.ndarray
    """(M,) sample numbers that are used, ascending."""
    labels: np.ndarray
    """(M,) int64 their classes, by the classifier's numbers; (M, C) bool if an image may be of
    several.
    """
    values: ValueRange | None
    """How values of more than 8 bits are shown."""
    notes: tuple[str, ...]
    evals: Path
    """Folder of the result."""
    reading: Reading


@dataclass(frozen=True)
class Beside:
    """What is printed beside the classifier's scores."""

    rows: dict[str, Scores] = field(default_factory=dict)
    """Name → scores on the same test images."""
    notes: tuple[str, ...] = ()


def check_classifier_inputs(
    run: Path, test: str, reading: Reading, known_only: bool, values: ValueRange | None
) -> ClassifierInputs:
    """Open everything that is read; needs no torch.

    Args:
        run: A run folder (its newest export is used) or an export folder.
        test: Labeled shards, a folder or a URL.
        reading: How images are read.
        known_only: Leave out images of classes that the classifier lacks, which are refused
            otherwise.
        values: How values of more than 8 bits are shown, for an export without a value range.

    Raises:
        UserError: The export has no classifier; the shards are missing, have no labels or other
            classes; or the results cannot be written.
    """
    export = find_export(run)
    info = read_classifier_info(export)
    shards = open_shards(test)
    check_labels(shards, least=1)
    numbers = labeled_numbers(shards)
    labels, known, unknown = match_labels(shards, info.classes, info.label_separator)
    notes = []
    if not known.all():
        named = ", ".join(unknown[:_NAMED])
        if not known_only or not known.any():
            raise UserError(
                f"{(~known).sum():,} of {len(known):,} test images are of classes that the "
                f"classifier lacks: {named} (it has {', '.join(info.classes[:_NAMED])})",
                "use test images of its classes, or --known-classes-only to leave these out",
            )
        notes.append(f"{(~known).sum():,} test images of other classes ({named}) are left out.")
    if skipped := shards.num_samples - len(numbers):
        notes.append(f"{skipped:,} test images have no label and are left out.")
    if info.data_fingerprint == shards.fingerprint:
        notes.append("The classifier was trained on these very shards: this says nothing.")
    shown, more = range_of(info, [("--test", shards)], values)
    evals = make_evals_folder(export)
    return ClassifierInputs(
        *(export, info, shards, numbers[known], labels[known], shown),
        *((*notes, *more), evals, reading),
    )


def publish(
    inputs: ClassifierInputs, probabilities: np.ndarray, beside: Beside | None = None
) -> Path:
    """Print the tables, and write the JSON and the picture beside it; returns the JSON's path.

    Args:
        inputs: The classifier and the test images.
        probabilities: (M, C) of the test images.
        beside: Other scores on them; None: none.

    Raises:
        UserError: They cannot be written; everything was printed.
    """
    beside = beside or Beside()
    if inputs.info.label_separator:
        return _publish_multi_label(inputs, probabilities, beside.notes)
    labels, names = inputs.labels, inputs.info.classes
    scores = score(labels, probabilities.argmax(axis=1), len(names))
    found = measure(probabilities, labels, scores)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    info = inputs.info
    title = f"classifier · {info.recipe} · step {info.step:,} · {len(labels):,} test images"
    print_table(console, _table(title, scores, found, beside))
    majority = np.bincount(labels, minlength=len(names)).max()
    notes = [
        f"Always the test images' most frequent class: {with_interval(majority, len(labels))} %.",
        "In parentheses: 95 % intervals (Wilson). Balanced accuracy, macro-F1, AUROC and average "
        "precision give every class of the test images the same weight.",
        *beside.notes,
        *inputs.notes,
    ]
    for note in notes:
        console.print(f"- {note}", markup=False)
    console.print()
    print_table(console, class_table(class_scores(scores, names), "per class"))
    plain = _to_json(inputs, notes) | {
        **found,
        "per_class": [asdict(each) for each in class_scores(scores, names)],
        # Rows: class; columns: predicted class; both in the order of `classes`.
        "confusion_matrix": None if scores.confusion is None else scores.confusion.tolist(),
        "beside": {name: summarize(each) for name, each in beside.rows.items()},
    }
    return _write(inputs, plain, scores.confusion, console)


def _publish_multi_label(
    inputs: ClassifierInputs, probabilities: np.ndarray, more: tuple[str, ...]
) -> Path:
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    info, found = (
        inputs.info,
        measure_multi_label(probabilities, inputs.labels, inputs.info.classes),
    )
    num_images = len(inputs.labels)
    title = f"classifier · {info.recipe} · step {info.step:,} · {num_images:,} test images"
    print_multi_label(console, title, found, num_images)
    notes = [
        "A class is predicted where its probability is at least 0.5; average precision and AUROC "
        "are over all thresholds. Means give every class of the test images the same weight.",
        *more,
        *inputs.notes,
    ]
    for note in notes:
        console.print(f"- {note}", markup=False)
    return _write(inputs, _to_json(inputs, notes) | found, None, console)


def _write(
    inputs: ClassifierInputs,
    plain: dict[str, Any],
    confusion: np.ndarray | None,
    console: Console,
) -> Path:
    path = inputs.evals / f"classifier_step_{inputs.info.step:08d}.json"
    try:
        with replacing(path) as partial:
            partial.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", "utf-8")
        if confusion is not None:
            picture = draw_confusion(confusion, inputs.info.classes)
            with replacing(path.with_suffix(".png")) as partial:
                picture.save(partial, "PNG")
            console.print(f"\nconfusion matrix: {path.with_suffix('.png')}", markup=False)
    except OSError as error:
        raise UserError(
            f"cannot write the results above to {path}: {error.strerror}",
            "free some space before the next evaluation",
        ) from None
    console.print(f"all results: {path}", markup=False)
    return path


def measure(
    probabilities: np.ndarray, labels: np.ndarray, scores: Scores
) -> dict[str, float | list[float | None] | None]:
    """All numbers that need probabilities, and those of the predictions."""
    auroc = auroc_by_class(probabilities, labels)
    precision = average_precision_by_class(probabilities, labels)
    found: dict[str, Any] = {
        **summarize(scores),
        "log_loss": log_loss(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
        "auroc": mean_of(auroc),
        "average_precision": mean_of(precision),
        "auroc_by_class": auroc,
        "average_precision_by_class": precision,
    }
    if probabilities.shape[1] > _TOP:
        found["top5_accuracy"] = float(in_top(probabilities, labels, _TOP).mean())
    return found


def _table(title: str, scores: Scores, found: dict[str, Any], beside: Beside) -> Table:
    table = Table(title=Text(title), title_justify="left")
    cells = {"test %": with_interval(scores.num_right, len(scores.correct))}
    if "top5_accuracy" in found:
        cells["top-5 %"] = percent(found["top5_accuracy"])
    for name, key in (
        ("balanced %", "balanced_accuracy"),
        ("macro-F1 %", "macro_f1"),
        ("AUROC %", "auroc"),
        ("average precision %", "average_precision"),
        ("calibration error %", "calibration_error"),
    ):
        cells[name] = percent(found[key])
    if beside.rows:
        table.add_column("")
    for name in cells:
        table.add_column(name, justify="right")
    first = ["fine-tuned"] if beside.rows else []
    table.add_row(*first, *cells.values(), style="bold" if beside.rows else "")
    for name, other in beside.rows.items():
        others = {
            "test %": with_interval(other.num_right, len(other.correct)),
            "balanced %": percent(other.balanced_accuracy),
            "macro-F1 %": percent(other.macro_f1),
        }
        table.add_row(name, *(others.get(each, "–") for each in cells))
    return table


def _to_json(inputs: ClassifierInputs, notes: list[str]) -> dict[str, Any]:
    """What was evaluated, without the numbers."""
    return {
        "format": FORMAT,
        "export": str(inputs.export.resolve()),
        "step": inputs.info.step,
        "info": to_plain(inputs.info),
        "crop_ratio": inputs.reading.crop_ratio,
        "value_range": inputs.values and asdict(inputs.values),
        "test": {
            "source": inputs.test.source,
            "fingerprint": inputs.test.fingerprint,
            "num_images": len(inputs.labels),
        },
        "classes": list(inputs.info.classes),
        "notes": notes,
        "versions": {name: version(name) for name in ("ssl-vit", "torch", "numpy")},
    }
