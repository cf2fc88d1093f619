"""Where the labels of foreign tars are, what they say, and where they might be if nothing does."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic_core import from_json

from ssl_vit.data.index_file import (
    INDEX_FILE,
    MOST_CLASSES,
    NO_LABEL,
    Index,
    fingerprint,
    read_index,
    records_digest,
)
from ssl_vit.data.urls import name_of
from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import (
    ClassTable,
    LabelError,
    number_by_names,
    number_classes,
    number_of,
    read_label,
    written,
)
from ssl_vit_data_prep.layout import find_layout, list_some
from ssl_vit_data_prep.parts import WrittenShard
from ssl_vit_data_prep.refusals import Refusal

LabelSource = Literal["cls", "json", "folder", "tar", "none"]
# Longer contents are no labels, and are not read.
_LONGEST = {"cls": 2**16, "json": 2**24}
# Fields that are labels more often than others, the likeliest first.
_LABEL_NAMES = ("label", "class", "cls", "class_id", "category", "target", "id", "name")
_MOST_FIELDS = 12
_DEEPEST = 3


@dataclass(frozen=True)
class LabelRule:
    """Where labels are."""

    source: LabelSource = "cls"
    field: str = ""
    """Of a `.json`; of one in another, with a dot: `meta.class.id`."""

    @property
    def ending(self) -> str:
        """Of the file that holds them; empty if none does."""
        return self.source if self.source in ("cls", "json") else ""

    @property
    def longest(self) -> int:
        """Bytes of such a file, at most."""
        return _LONGEST.get(self.source, 0)

    def __str__(self) -> str:
        return f"json:{self.field}" if self.source == "json" else self.source

    @classmethod
    def parse(cls, text: str) -> "LabelRule":
        """The rule that was written by ``str``."""
        source, _, field = text.partition(":")
        match source:
            case "json" | "folder" | "tar" | "none":
                return cls(source, field)
            case _:
                return cls()


def check_label_options(labels: str, label_field: str, classes: Path | None) -> None:
    """Refuse options that contradict each other or would have no effect.

    Args:
        labels: As given by ``--labels``; empty if it was not.

    Raises:
        UserError: They do.
    """
    if label_field and labels not in ("", "json"):
        raise UserError(
            f"--labels {labels} and --label-field {label_field} are two places for labels",
            "leave one of them out; --label-field means the .json",
        )
    if labels == "json" and not label_field:
        raise UserError(
            "--labels json does not say which field of the .json is the label",
            "add  --label-field FIELD",
        )
    if labels == "none" and classes:
        raise UserError(
            "--classes has no effect with --labels none", "leave one of the two options out"
        )


@dataclass(frozen=True)
class FoundLabel:
    """What a file says of its sample."""

    label: str
    """Empty for none."""
    said: str = ""
    """What it says instead of a label."""


def read_tar_label(name: str, content: bytes, rule: LabelRule) -> FoundLabel | Refusal:
    """The label in a `.cls` or `.json`.

    Args:
        name: Of the file.
        content: Whole.
        rule: Names the field of a `.json`.

    Returns:
        The label, or why the file cannot be read.

    Raises:
        LabelError: It is a list, or longer than a name can be.
    """
    try:
        value: object = content.decode()
        if rule.source == "json":
            fields = from_json(content)
            if not isinstance(fields, dict):
                return Refusal(name, "unreadable label", "its JSON is not an object")
            found, value = look_up(fields, rule.field)
            if not found:
                return FoundLabel("")
    except UnicodeDecodeError:
        return Refusal(name, "unreadable label", "it is not text in UTF-8")
    except ValueError as error:
        return Refusal(name, "unreadable label", f"it is not JSON: {error}")
    try:
        label = read_label(value)
    except LabelError as error:
        where = f"the field {rule.field} of {name}" if rule.field else name
        raise LabelError(f"{where} holds {error}") from None
    return FoundLabel(label, "" if label else written(value))


def look_up(fields: Mapping[str, Any], name: str) -> tuple[bool, object]:
    """Whether a field is there, and its value; a dot in its name leads into another object."""
    if name in fields:
        return True, fields[name]
    outer, dot, inner = name.partition(".")
    if dot and isinstance(fields.get(outer), dict):
        return look_up(fields[outer], inner)
    return False, None


def list_fields(content: bytes) -> list[str]:
    """Names of the fields of a `.json` that hold one value, as :func:`look_up` takes them."""
    try:
        fields = from_json(content)
    except ValueError:
        return []
    return list(_flatten(fields, "", 1)) if isinstance(fields, dict) else []


def _flatten(fields: Mapping[str, Any], prefix: str, depth: int) -> Iterable[str]:
    for name, value in fields.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _flatten(value, f"{prefix}{name}.", depth + 1)
        elif not isinstance(value, (dict, list)):
            yield f"{prefix}{name}"


def number_labels(
    results: Sequence[WrittenShard], names: Sequence[str], rule: LabelRule
) -> tuple[ClassTable, list[WrittenShard]]:
    """The classes, and the shards with their labels numbered by them.

    Args:
        results: Their records' labels are places in their ``labels``.
        names: Of the classes, by number; empty: the labels themselves are the names.
        rule: With `folder`, labels are whole paths of folders.

    Raises:
        UserError: A label is none of the classes, or a folder is a set.
    """
    label_of = _classes_of_folders(results) if rule.source == "folder" else {}
    texts = [label_of.get(text, text) for result in results for text in result.labels]
    known = list(dict.fromkeys(text for text in texts if text))
    if len(known) > MOST_CLASSES:
        raise UserError(
            f"{len(known):,} different labels, such as {list_some(known[:3])}, name samples, not "
            "classes",
            "--labels none  makes an index without them; --label-field FIELD  takes others",
        )
    table = number_by_names(known, names) if names else number_classes(known)
    numbered = []
    for result in results:
        named = [label_of.get(text, text) for text in result.labels]
        numbers = [table.numbers[name] if name else NO_LABEL for name in named]
        records = result.records.copy()
        labels = np.array([*numbers, NO_LABEL], dtype=np.int32)
        records["label"] = labels[records["label"]]
        shard = replace(result.shard, records_sha256=records_digest(records))
        numbered.append(replace(result, shard=shard, records=records, labels=[]))
    return table, numbered


def _classes_of_folders(results: Sequence[WrittenShard]) -> dict[str, str]:
    """Path of a folder → class; empty for one above the folders of classes."""
    counts: Counter[str] = Counter()
    for result in results:
        images = np.bincount(result.records["label"] + 1, minlength=len(result.labels) + 1)
        for folder, count in zip(result.labels, images[1:], strict=True):
            counts[folder] += int(count)
    layout = find_layout(counts, may_split=False)
    if len(sets := layout.sets_among(counts)) > 1:
        raise UserError(
            f"the folders {list_some(sets)} in the tars are sets and not classes",
            "index the tars of each set on their own, or unpack them:  "
            "ssl-vit shards pack IMAGES SHARDS",
        )
    return {folder: layout.class_of(f"{folder}/") for folder in counts}


def check_renamed(folder: Path, index: Index) -> None:
    """Refuse to give the labels of a set another meaning under the same fingerprint, by which runs
    and evaluations know the set.

    Args:
        folder: Of the index, in which an earlier one may lie.

    Raises:
        UserError: The earlier one has other names for the same class numbers.
    """
    try:
        before = read_index(folder) if (folder / INDEX_FILE).exists() else None
    except UserError:
        return  # nothing can refer to an index that cannot be read
    if before is None or fingerprint(before.shards) != fingerprint(index.shards):
        return
    pairs = zip(before.classes, index.classes, strict=False)
    renamed = [
        (number, old, new)
        for number, (old, new) in enumerate(pairs)
        # A number for a name said nothing that a name could contradict.
        if old != new and number_of(old) is None
    ]
    if renamed:
        number, old, new = renamed[0]
        raise UserError(
            f"{folder / INDEX_FILE} calls class {number} {old}, the new index would call it {new}: "
            "results for the same labels would mean other classes",
            f"give --out another folder; or delete {folder / INDEX_FILE}, if its names are wrong",
        )


def describe_hints(saw: Mapping[str, Mapping[str, int]], urls: Sequence[str]) -> list[str]:
    """Where labels might be, if nothing was found where they were looked for.

    Args:
        saw: `fields` of `.json` files and `folders` of images.
        urls: Of the tars.
    """
    hints = []
    if fields := list(saw.get("fields", ())):
        likely = [field for word in _LABEL_NAMES for field in fields if _last(field) == word]
        listed = ", ".join(fields[:_MOST_FIELDS]) + (", …" if len(fields) > _MOST_FIELDS else "")
        takes = f"--label-field {likely[0] if likely else 'FIELD'}  takes one"
        hints.append(f"json has the fields {listed}; {takes}")
    folders = saw.get("folders", {})
    layout = find_layout(folders, may_split=False)
    classes = sorted({name for folder in folders if (name := layout.class_of(f"{folder}/"))})
    if len(classes) > 1:
        hints.append(
            f"images lie in {len(classes):,} folders: {list_some(classes)}; --labels folder"
        )
    stems = sorted({stem_of(url) for url in urls})
    if len(stems) > 1 and not _are_counted(stems):
        hints.append(f"tars are named {list_some(stems)}; --labels tar")
    return hints


def stem_of(url: str) -> str:
    """Name of a tar without its ending."""
    return PurePosixPath(name_of(url)).name.removesuffix(".tar")


def _last(field: str) -> str:
    return field.rpartition(".")[2].casefold()


def _are_counted(stems: Sequence[str]) -> bool:
    """Whether names differ only by a number that counts them up: `shard-000000`, `train-3`."""
    split = [re.fullmatch(r"(.*?)([0-9]+)", stem) for stem in stems]
    matches = [match for match in split if match]
    if len(matches) < len(stems) or len({match[1] for match in matches}) > 1:
        return False
    numbers = [int(match[2]) for match in matches]
    return not matches[0][1] or max(numbers) - min(numbers) < 2 * len(numbers)
