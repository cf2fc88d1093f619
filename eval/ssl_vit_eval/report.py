"""The report of an evaluation: tables, a verdict and a JSON file. No torch here."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssl_vit.config import to_plain
from ssl_vit.data.labels import labeled_numbers
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.foreign import MIB, read_json
from ssl_vit_eval.classes import LabeledImages
from ssl_vit_eval.inputs import Inputs
from ssl_vit_eval.metrics import LARGEST_CONFUSION, chance_difference, class_scores, summarize
from ssl_vit_eval.overlap import Overlap
from ssl_vit_eval.results import PIXELS, PRETRAINED, RANDOM, Evaluation, KindResult, RowResult
from ssl_vit_eval.tables import class_table, percent, print_table, row_table, with_interval

FORMAT = "ssl-vit-evaluation-1"
# Share of the test images that are also in train from which the verdict mentions it.
_MANY_REPEATED = 0.02
_MOST_BYTES = 256 * MIB  # of a result, which may have a confusion matrix
# A list of numbers that JSON's indentation put on one line each. No string has a line break.
_NUMBERS = re.compile(r"\[\n\s*(\d+(?:,\n\s*\d+)*)\n\s*\]")


def verdict(rows: Sequence[RowResult], num_test: int) -> str:
    """A sentence on whether the pre-trained row beats both baselines.

    Args:
        rows: The three rows, with their names.
        num_test: M, the number of test images; decides which differences may be chance.
    """
    accuracy = {row.name: row.accuracy for row in rows}
    ours = accuracy[PRETRAINED]
    lead = {name: ours - accuracy[name] for name in (RANDOM, PIXELS)}
    noise = {name: chance_difference(ours, accuracy[name], num_test) for name in lead}
    clear = {name: lead[name] > noise[name] for name in lead}
    if clear[RANDOM] and clear[PIXELS]:
        sentence = "Pre-trained features beat both baselines"
    elif clear[RANDOM] and lead[PIXELS] > 0:
        sentence = "Pre-trained features beat the untrained network, and perhaps raw pixels"
    elif clear[RANDOM]:
        sentence = "Pre-trained features beat the untrained network but not raw pixels"
    elif lead[RANDOM] > 0:
        sentence = "No clear sign of learning: the lead over the untrained network may be chance"
    else:
        sentence = "No sign of learning: the same network without any training is as good"
    against = " and ".join(
        f"{100 * points:+.1f} points vs. {name}" for name, points in lead.items()
    )
    return (
        f"{sentence}. {100 * ours:.1f} % is {against}; with {num_test:,} test images, differences "
        f"below about {100 * max(noise.values()):.1f} points may be chance."
    )


def publish(inputs: Inputs, evaluation: Evaluation) -> Path:
    """Print the tables to stdout and write the JSON; returns the JSON's path.

    Raises:
        UserError: The JSON cannot be written; everything was printed.
    """
    num_test = len(inputs.classes.test.labels)
    conclusion = verdict(evaluation.rows, num_test) + _warning(evaluation)
    path = result_path(inputs, evaluation.protocol)
    notes = [*evaluation.notes, *_notes(inputs, evaluation)]
    if path.exists() and _has_other_settings(path, inputs, evaluation):
        notes.append(f"Replaced an earlier result with other settings: {path.name}.")
    text = json.dumps(
        _to_json(inputs, evaluation, notes, conclusion),
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    info = inputs.info
    title = f"{evaluation.protocol} · {info.recipe} · step {info.step:,}"
    print_table(console, row_table(title, evaluation.rows))
    for note in notes:
        console.print(f"- {note}", markup=False)
    best = next(row.best for row in evaluation.rows if row.name == PRETRAINED)
    if best.scores is not None:
        console.print()
        print_table(console, class_table(class_scores(best.scores, inputs.classes.names)))
    console.print(f"\n{conclusion}", markup=False)
    try:
        with replacing(path) as partial:
            partial.write_text(
                _NUMBERS.sub(_on_one_line, text) + "\n", "utf-8", errors="backslashreplace"
            )
    except OSError as error:
        raise UserError(
            f"cannot write the results above to {path}: {error.strerror}",
            "free some space before the next evaluation",
        ) from None
    console.print(f"\nall results: {path}", markup=False)
    return path


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[1].split())}]"


def result_path(inputs: Inputs, protocol: str) -> Path:
    """The path of the result: one of the same images and classes is replaced, others are kept."""
    path = inputs.evals / f"{protocol}_step_{inputs.info.step:08d}.json"
    images = f"{inputs.train.fingerprint[:8]}_{inputs.test.fingerprint[:8]}"
    classes = json.dumps([inputs.train.classes, inputs.test.classes]).encode()
    on_images = path.with_name(f"{path.stem}_on_{images}.json")
    on_classes = f"{on_images.stem}_classes_{hashlib.sha256(classes).hexdigest()[:8]}.json"
    for place in (path, on_images):
        if not place.exists() or _is_of(place, inputs):
            return place
    return path.with_name(on_classes)


def _is_of(path: Path, inputs: Inputs) -> bool:
    """Whether an earlier result has these images and classes."""
    try:
        earlier = read_json(path, "", _MOST_BYTES)
        # Earlier results have one list of classes for both sets.
        return all(
            earlier[side]["fingerprint"] == shards.fingerprint
            and earlier[side].get("classes", earlier["classes"]) == list(shards.classes)
            for side, shards in (("train", inputs.train), ("test", inputs.test))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _has_other_settings(path: Path, inputs: Inputs, evaluation: Evaluation) -> bool:
    try:
        earlier = read_json(path, "", _MOST_BYTES)
        now = json.loads(json.dumps({"name": evaluation.protocol, **evaluation.settings}))
        return (earlier["protocol"], earlier["crop_ratio"]) != (now, inputs.reading.crop_ratio)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _warning(evaluation: Evaluation) -> str:
    """A sentence for the verdict if many test images are also in train; otherwise empty."""
    overlap = evaluation.overlap
    if overlap is None or overlap.share < _MANY_REPEATED:
        return ""
    start = (
        f" But {_repeated(overlap)} ({percent(overlap.share)} %), so this says little about new "
    )
    best = next(row.best for row in evaluation.rows if row.name == PRETRAINED)
    others = ~overlap.repeated
    if best.scores is None or not others.any():
        return f"{start}images."
    alone = with_interval(int(best.scores.correct[others].sum()), int(others.sum()))
    return f"{start}images: on the other {others.sum():,} test images it is {alone} %."


def _repeated(overlap: Overlap) -> str:
    return f"{overlap.count:,} of {len(overlap.repeated):,} test images are also in train"


def _notes(inputs: Inputs, evaluation: Evaluation) -> list[str]:
    majority = evaluation.majority
    notes = [
        "Always predicting train's most frequent class: "
        f"{with_interval(majority.num_right, len(majority.correct))} %, balanced "
        f"{percent(majority.balanced_accuracy)} %.",
        "In parentheses: 95 % intervals (Wilson). Balanced accuracy and macro-F1 give every class "
        "of the test images the same weight.",
        *inputs.classes.notes,
        *inputs.notes,
    ]
    for side, shards in (("train", inputs.train), ("test", inputs.test)):
        if skipped := shards.num_samples - len(labeled_numbers(shards)):
            notes.append(f"{skipped:,} images of {side} have no label and are left out.")
    overlap = evaluation.overlap
    if overlap is not None and overlap.count:
        details = [
            f"{count:,} {what}"
            for count, what in (
                (overlap.num_other_class, "under another class"),
                (overlap.num_single_color, "with a single color"),
            )
            if count
        ]
        more = f" ({', '.join(details)})" if details else ""
        notes.append(f"{_repeated(overlap)}, with identical pixels in the crop{more}.")
    if inputs.info.data_fingerprint == inputs.test.fingerprint:
        notes.append("The backbone was pre-trained, without labels, on the same test images.")
    if len(inputs.classes.names) > LARGEST_CONFUSION:
        notes.append(f"No confusion matrix is written for more than {LARGEST_CONFUSION:,} classes.")
    return notes


def _to_json(
    inputs: Inputs, evaluation: Evaluation, notes: Sequence[str], conclusion: str
) -> dict[str, Any]:
    classes, majority = inputs.classes, evaluation.majority
    return {
        "format": FORMAT,
        "protocol": {"name": evaluation.protocol, **evaluation.settings},
        "crop_ratio": inputs.reading.crop_ratio,
        "value_range": inputs.values and asdict(inputs.values),
        "export": str(inputs.export.resolve()),
        "step": inputs.info.step,
        "info": to_plain(inputs.info),
        "train": _describe(inputs.train, classes.train, classes.names),
        "test": _describe(inputs.test, classes.test, classes.names),
        "classes": list(classes.names),
        "test_images_in_train": _describe_overlap(evaluation.overlap),
        "majority_accuracy": majority.accuracy,
        "majority": summarize(majority),
        "rows": {row.name: _row_to_json(row, classes.names) for row in evaluation.rows},
        "notes": list(notes),
        "verdict": conclusion,
        "versions": {name: version(name) for name in ("ssl-vit", "torch", "numpy")},
    }


def _row_to_json(row: RowResult, names: tuple[str, ...]) -> dict[str, Any]:
    best = row.best
    described: dict[str, Any] = {
        "accuracy": row.accuracy,
        "kind": best.kind,
        "setting": best.setting,
    }
    if best.scores is not None:
        confusion = best.scores.confusion
        described |= summarize(best.scores)
        described["per_class"] = [asdict(each) for each in class_scores(best.scores, names)]
        # Rows: class; columns: predicted class; both in the order of `classes`.
        described["confusion_matrix"] = None if confusion is None else confusion.tolist()
    return described | {"kinds": {kind.kind: _kind_to_json(kind) for kind in row.kinds}}


def _kind_to_json(kind: KindResult) -> dict[str, Any]:
    interval = kind.held_out_interval
    return {
        "accuracy": kind.accuracy,
        **({} if kind.scores is None else summarize(kind.scores)),
        "held_out": kind.held_out,
        "held_out_interval_95": None if interval is None else list(interval),
        "setting": kind.setting,
        **kind.details,
    }


def _describe(shards: ShardSet, images: LabeledImages, names: tuple[str, ...]) -> dict[str, Any]:
    num_labeled = len(labeled_numbers(shards))
    counts = np.bincount(images.labels, minlength=len(names)).tolist()
    return {
        "source": shards.source,
        "fingerprint": shards.fingerprint,
        "num_images": len(images.labels),
        "num_without_label": shards.num_samples - num_labeled,
        "num_of_unknown_class": num_labeled - len(images.labels),
        "classes": list(shards.classes),
        "images_per_class": [
            {"name": name, "images": count} for name, count in zip(names, counts, strict=True)
        ],
    }


def _describe_overlap(overlap: Overlap | None) -> dict[str, Any] | None:
    return overlap and {
        "count": overlap.count,
        "share": overlap.share,
        "of_one_color": overlap.num_single_color,
        "of_another_class_in_train": overlap.num_other_class,
        "compared": "pixels of the evaluated crop, exactly",
    }
