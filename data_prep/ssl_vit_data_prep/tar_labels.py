"""Labels in existing tars: where they are, how they are read, and hints where they might be."""

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
from ssl_vit_data_prep.finished_shards import WrittenShard
from ssl_vit_data_prep.layout import find_layout, list_some
from ssl_vit_data_prep.refusals import Refusal

LabelSource = Literal["cls", "json", "folder", "tar", "none"]
# Longer contents are not labels, and are not read.
_LONGEST = {"cls": 2**16, "json": 2**24}
# Usual names of a field with labels, the likeliest first.
_LABEL_NAMES = ("label", "class", "cls", "class_id", "category", "target", "id", "name")
_MOST_FIELDS = 12
_DEEPEST = 3


@dataclass(frozen=True)
class LabelRule:
    """The place of labels."""

    source: LabelSource = "cls"
    field: str = ""
    """Field of a `.json`; a nested one with dots: `meta.class.id`."""

    @property
    def ending(self) -> str:
        """Ending of the files with labels; empty if labels are not in files."""
        return self.source if self.source in ("cls", "json") else ""

    @property
    def longest(self) -> int:
        """Most bytes of such a file."""
        return _LONGEST.get(self.source, 0)

    def __str__(self) -> str:
        return f"json:{self.field}" if self.source == "json" else self.source

    @classmethod
    def parse(cls, text: str) -> "LabelRule":
        """The inverse of ``str``."""
        source, _, field = text.partition(":")
        match source:
            case "json" | "folder" | "tar" | "none":
                return cls(source, field)
            case _:
                return cls()


def check_label_options(labels: str, label_field: str, classes: Path | None) -> None:
    """Refuse options that contradict each other or would have no effect.

    Args:
        labels: The value of ``--labels``; empty if not given.

    Raises:
        UserError: They do.
    """
    if label_field and labels not in ("", "json"):
        raise UserError(
            f"--labels {labels} and --label-field {label_field} name two places of labels",
            "leave one of them out; --label-field implies the .json",
        )
    if labels == "json" and not label_field:
        raise UserError(
            "--labels json needs the field of the .json that is the label",
            "add  --label-field FIELD",
        )
    if labels == "none" and classes:
        raise UserError(
            "--classes has no effect with --labels none", "leave one of the two options out"
        )


@dataclass(frozen=True)
class FoundLabel:
    """The label in a file."""

    label: str
    """The label; empty for none."""
    no_label: str = ""
    """The text that means "no label"; empty if there is none."""


def read_tar_label(name: str, content: bytes, rule: LabelRule) -> FoundLabel | Refusal:
    """The label in a `.cls` or `.json`.

    Args:
        name: Name of the file.
        content: Its whole content.
        rule: Names the field of a `.json`.

    Returns:
        The label, or why the file cannot be read.

    Raises:
        LabelError: It is a list, or too long.
    """
    try:
        value: object = content.decode()
        if rule.source == "json":
            fields = from_json(content)
            if not isinstance(fields, dict):
                return Refusal(name, "unreadable label", "not a JSON object")
            found, value = look_up(fields, rule.field)
            if not found:
                return FoundLabel("")
    except UnicodeDecodeError:
        return Refusal(name, "unreadable label", "not text in UTF-8")
    except ValueError as error:
        return Refusal(name, "unreadable label", f"not valid JSON: {error}")
    try:
        label = read_label(value)
    except LabelError as error:
        where = f"the field {rule.field} of {name}" if rule.field else name
        raise LabelError(f"{where} has {error}") from None
    return FoundLabel(label, "" if label else written(value))


def look_up(fields: Mapping[str, Any], name: str) -> tuple[bool, object]:
    """Whether a field exists, and its value; dots in its name lead into nested objects."""
    if name in fields:
        return True, fields[name]
    outer, dot, inner = name.partition(".")
    if dot and isinstance(fields.get(outer), dict):
        return look_up(fields[outer], inner)
    return False, None


def list_fields(content: bytes) -> list[str]:
    """Names of the fields of a `.json` with a single value, in the form of :func:`look_up`."""
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
        results: Shards whose records have places in ``labels`` as their labels.
        names: Names of the classes, by number; empty: the labels themselves are the names.
        rule: With `folder`, labels are whole paths of folders.

    Raises:
        UserError: A label is not one of the classes, or a folder is a set.
    """
    label_of = _classes_of_folders(results) if rule.source == "folder" else {}
    texts = [label_of.get(text, text) for result in results for text in result.labels]
    known = list(dict.fromkeys(text for text in texts if text))
    if len(known) > MOST_CLASSES:
        raise UserError(
            f"{len(known):,} different labels, such as {list_some(known[:3])}, are names of "
            "samples and not of classes",
            "use --labels none for an index without them, or --label-field FIELD for others",
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
    """Path of a folder → class; empty for a folder above those of the classes."""
    counts: Counter[str] = Counter()
    for result in results:
        images = np.bincount(result.records["label"] + 1, minlength=len(result.labels) + 1)
        for folder, count in zip(result.labels, images[1:], strict=True):
            counts[folder] += int(count)
    layout = find_layout(counts, may_split=False)
    if len(sets := layout.sets_among(counts)) > 1:
        raise UserError(
            f"the folders {list_some(sets)} in the tars are sets and not classes",
            "index the tars of each set separately, or unpack them:  "
            "ssl-vit shards pack IMAGES SHARDS",
        )
    return {folder: layout.class_of(f"{folder}/") for folder in counts}


def check_renamed(folder: Path, index: Index) -> None:
    """Refuse to change the meaning of a set's labels under the same fingerprint, by which runs and
    evaluations identify the set.

    Args:
        folder: Folder of the index, which may hold an earlier one.

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
        # A number as a name has no meaning that a new name could contradict.
        if old != new and number_of(old) is None
    ]
    if renamed:
        number, old, new = renamed[0]
        raise UserError(
            f"class {number} is {old} in {folder / INDEX_FILE}, and would be {new} in the new "
            "index: earlier results would refer to other classes",
            f"set --out to another folder; or delete {folder / INDEX_FILE}, if its names are wrong",
        )


def describe_hints(saw: Mapping[str, Mapping[str, int]], urls: Sequence[str]) -> list[str]:
    """Hints where labels might be, if there were none where they were expected.

    Args:
        saw: Counts of `fields` of `.json` files and of `folders` of images.
        urls: Locations of the tars.
    """
    hints = []
    if fields := list(saw.get("fields", ())):
        likely = [field for word in _LABEL_NAMES for field in fields if _last(field) == word]
        listed = ", ".join(fields[:_MOST_FIELDS]) + (", …" if len(fields) > _MOST_FIELDS else "")
        option = f"--label-field {likely[0] if likely else 'FIELD'}"
        hints.append(f"json has the fields {listed}; use {option}")
    folders = saw.get("folders", {})
    layout = find_layout(folders, may_split=False)
    classes = sorted({name for folder in folders if (name := layout.class_of(f"{folder}/"))})
    if len(classes) > 1:
        hints.append(
            f"images are in {len(classes):,} folders: {list_some(classes)}; use --labels folder"
        )
    stems = sorted({stem_of(url) for url in urls})
    if len(stems) > 1 and not _are_counted(stems):
        hints.append(f"tars are named {list_some(stems)}; use --labels tar")
    return hints


def stem_of(url: str) -> str:
    """Name of a tar without its ending."""
    return PurePosixPath(name_of(url)).name.removesuffix(".tar")


def _last(field: str) -> str:
    return field.rpartition(".")[2].casefold()


def _are_counted(stems: Sequence[str]) -> bool:
    """Whether names differ only by a running number: `shard-000000`, `train-3`."""
    split = [re.fullmatch(r"(.*?)([0-9]+)", stem) for stem in stems]
    matches = [match for match in split if match]
    if len(matches) < len(stems) or len({match[1] for match in matches}) > 1:
        return False
    numbers = [int(match[2]) for match in matches]
    return not matches[0][1] or max(numbers) - min(numbers) < 2 * len(numbers)
