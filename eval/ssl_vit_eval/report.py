"""One table, one sentence, one JSON file: what every protocol's numbers end up as. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_vit.config import to_plain
from ssl_vit.data.labels import labelled_numbers
from ssl_vit.data.shards import ShardSet
from ssl_vit.files import replacing
from ssl_vit_eval.inputs import Inputs

FORMAT = "ssl-vit-evaluation-1"
PRETRAINED = "pre-trained"
RANDOM = "random initialisation"
PIXELS = "raw pixels"
_KINDS = {"cls": "class token", "mean": "patch mean", "pixels": "RGB ≤ 32×32"}


@dataclass(frozen=True)
class KindResult:
    """How one kind of feature did."""

    kind: str
    """`cls`, `mean` or `pixels`."""
    setting: str
    """What was chosen for it, e.g. `k=20`."""
    accuracy: float | None
    """On test, in [0, 1]; None where the held-out part preferred another kind."""
    held_out: float | None = None
    """On the held-out part of train, in [0, 1]; None in protocols without one."""
    details: dict[str, Any] = field(default_factory=dict)
    """All numbers behind it, for the JSON."""


@dataclass(frozen=True)
class RowResult:
    """One row of the comparison."""

    name: str
    kinds: tuple[KindResult, ...]

    @property
    def best(self) -> KindResult:
        """The kind of feature that counts: the highest test accuracy among those tested."""
        return max(self.kinds, key=lambda result: result.accuracy or 0.0)

    @property
    def accuracy(self) -> float:
        """The row's number, in [0, 1]."""
        return self.best.accuracy or 0.0


@dataclass(frozen=True)
class Evaluation:
    """A protocol's name and settings, its rows, and what must be said beside them."""

    protocol: str
    """`knn` or `linear`; begins the result's file name."""
    settings: dict[str, Any]
    rows: tuple[RowResult, ...]
    majority: float
    """Test accuracy in [0, 1] of always answering train's most frequent class."""
    notes: tuple[str, ...]


def verdict(rows: Sequence[RowResult], num_test: int) -> str:
    """Whether the pre-trained row beats both baselines, in plain words.

    Args:
        rows: The three rows, by their names.
        num_test: M, test images; decides which differences may be chance.
    """
    accuracy = {row.name: row.accuracy for row in rows}
    ours = accuracy[PRETRAINED]
    lead = {name: ours - accuracy[name] for name in (RANDOM, PIXELS)}
    noise = {name: _noise(ours, accuracy[name], num_test) for name in lead}
    clear = {name: lead[name] > noise[name] for name in lead}
    if clear[RANDOM] and clear[PIXELS]:
        sentence = "Pre-trained features beat both baselines"
    elif clear[RANDOM] and lead[PIXELS] > 0:
        sentence = "Pre-trained features beat the untrained network, and raw pixels perhaps"
    elif clear[RANDOM]:
        sentence = "Pre-trained features beat the untrained network but not raw pixels"
    elif lead[RANDOM] > 0:
        sentence = "No clear sign of learning: the lead over the untrained network may be chance"
    else:
        sentence = "No sign of learning: the same network without any training is as good"
    against = " and ".join(f"{100 * points:+.1f} points to {name}" for name, points in lead.items())
    return (
        f"{sentence}. {100 * ours:.1f} % is {against}; with {num_test:,} test images, differences "
        f"below about {100 * max(noise.values()):.1f} points may be chance."
    )


def _noise(first: float, second: float, num_test: int) -> float:
    """Two standard errors of a difference of accuracies taken as independent: rather too wide."""
    return 2 * ((first * (1 - first) + second * (1 - second)) / num_test) ** 0.5


def publish(inputs: Inputs, evaluation: Evaluation) -> Path:
    """Print the table to stdout and write the JSON; returns the JSON's path."""
    num_test = len(labelled_numbers(inputs.test))
    conclusion = verdict(evaluation.rows, num_test)
    path = result_path(inputs, evaluation.protocol)
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(_to_json(inputs, evaluation, conclusion), indent=1, ensure_ascii=False)
            + "\n"
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(inputs, evaluation))
    for note in (*evaluation.notes, *_notes(inputs, evaluation)):
        console.print(f"- {note}", markup=False)
    console.print(f"\n{conclusion}", markup=False)
    console.print(f"\nall numbers: {path}", markup=False)
    return path


def result_path(inputs: Inputs, protocol: str) -> Path:
    """Where the result goes: an earlier one of the same images is replaced, one of others kept."""
    path = inputs.evals / f"{protocol}_step_{inputs.info.step:08d}.json"
    try:
        earlier = json.loads(path.read_text())
        same = all(
            earlier[side]["fingerprint"] == shards.fingerprint
            for side, shards in (("train", inputs.train), ("test", inputs.test))
        )
    except FileNotFoundError:
        return path
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    both = f"{inputs.train.fingerprint[:8]}_{inputs.test.fingerprint[:8]}"
    return path if same else path.with_name(f"{path.stem}_on_{both}.json")


def _table(inputs: Inputs, evaluation: Evaluation) -> Table:
    table = Table(
        title=f"{evaluation.protocol} · {inputs.info.recipe} · step {inputs.info.step:,}",
        title_justify="left",
    )
    has_held_out = any(kind.held_out is not None for row in evaluation.rows for kind in row.kinds)
    table.add_column("features")
    table.add_column("kind")
    table.add_column("setting")
    if has_held_out:
        table.add_column("held-out %", justify="right")
    table.add_column("test %", justify="right")
    for row in evaluation.rows:
        for place, kind in enumerate(row.kinds):
            counts = kind is row.best
            cells = [row.name if place == 0 else "", _KINDS[kind.kind], kind.setting]
            cells += [_percent(kind.held_out)] if has_held_out else []
            cells.append(f"{_percent(kind.accuracy)}{' *' if counts else '  '}")
            table.add_row(*cells, style="bold" if counts else "")
        table.add_section()
    return table


def _notes(inputs: Inputs, evaluation: Evaluation) -> list[str]:
    said = [f"Always answering train's most frequent class: {_percent(evaluation.majority)} %."]
    for side, shards in (("train", inputs.train), ("test", inputs.test)):
        if skipped := shards.num_samples - len(labelled_numbers(shards)):
            said.append(f"{skipped:,} images of {side} have no label and are left out.")
    if inputs.info.data_fingerprint == inputs.test.fingerprint:
        said.append("The backbone was pre-trained, without labels, on these very test images.")
    return said


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.1f}"


def _to_json(inputs: Inputs, evaluation: Evaluation, conclusion: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "protocol": {"name": evaluation.protocol, **evaluation.settings},
        "crop_ratio": inputs.crop_ratio,
        "export": str(inputs.export.resolve()),
        "step": inputs.info.step,
        "info": to_plain(inputs.info),
        "train": _describe(inputs.train),
        "test": _describe(inputs.test),
        "classes": list(inputs.train.classes),
        "majority_accuracy": evaluation.majority,
        "rows": {
            row.name: {
                "accuracy": row.accuracy,
                "kind": row.best.kind,
                "setting": row.best.setting,
                "kinds": {
                    kind.kind: {
                        "accuracy": kind.accuracy,
                        "held_out": kind.held_out,
                        "setting": kind.setting,
                        **kind.details,
                    }
                    for kind in row.kinds
                },
            }
            for row in evaluation.rows
        },
        "notes": [*evaluation.notes, *_notes(inputs, evaluation)],
        "verdict": conclusion,
        "versions": {name: version(name) for name in ("ssl-vit", "torch", "numpy")},
    }


def _describe(shards: ShardSet) -> dict[str, Any]:
    return {
        "source": shards.source,
        "fingerprint": shards.fingerprint,
        "num_images": len(labelled_numbers(shards)),
        "num_without_label": shards.num_samples - len(labelled_numbers(shards)),
    }
