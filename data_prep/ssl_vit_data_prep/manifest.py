"""Manifests: lists of images with their labels, as CSV or JSON lines, instead of class folders.

One column has paths relative to the image folder; others may have labels, sets and groups. Further
columns are packed with the image as the sample's `.json`.
"""

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import (
    ClassTable,
    LabelError,
    number_classes,
    read_label,
    written,
)
from ssl_vit_data_prep.layout import SET_NAMES, set_of_word
from ssl_vit_data_prep.manifest_rows import Row, read_rows
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.scan import ImageFile

# Usual names of a column of paths, the likeliest first.
_PATH_NAMES = (
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "file",
    "image",
    "img",
    "image_name",
    "name",
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a manifest."""

    path: str = "path"
    label: str = ""
    """Column of labels; empty: `label`, if there is such a column."""
    split: str = ""
    """Column of sets; empty: none."""
    group: str = ""
    """Column of groups, whose images stay in one set; empty: none."""


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest."""

    labels: dict[str, str]
    """Path → label; empty for none."""
    extras: dict[str, dict[str, Any]]
    """Path → its further columns, if there are any."""
    sets: dict[str, str] = field(default_factory=dict)
    """Path → set, if there is a column of sets."""
    groups: dict[str, str] = field(default_factory=dict)
    """Path → group, if there is a column of groups."""
    missing: dict[str, int] = field(default_factory=dict)
    """Text that was read as "no label" → its count."""
    columns: tuple[str, ...] = ()
    """Names of all columns."""
    has_labels: bool = True
    """Whether there is a column of labels."""

    def classes(self) -> list[str]:
        """Names of the classes: by value if all are numbers, otherwise alphabetically."""
        return list(self.class_table().names)

    def class_table(self) -> ClassTable:
        """The classes of all lines, whichever of the images exist."""
        return number_classes(label for label in self.labels.values() if label)


def read_manifest(file: Path, images: Path, columns: Columns | None = None) -> Manifest:
    """Read a `.csv`, `.tsv`, `.jsonl` or `.json` (lines) file.

    Args:
        file: The manifest.
        images: Folder that its paths are relative to; absolute ones must lie in it.
        columns: Their names.

    Raises:
        UserError: It cannot be read, lacks a column, lists a path twice or outside of the folder,
            or has an invalid label or set.
    """
    columns = columns or Columns()
    # JSON objects may lack the other columns in the first line and have them later.
    some = Columns(columns.path, split=columns.split)
    names: dict[str, None] = {}
    made = Manifest({}, {})
    try:
        for row in read_rows(file):
            is_first = not names
            names.update(dict.fromkeys(row.values))
            if is_first:
                _check_columns(file, names, columns if row.is_table else some)
            _add_row(made, row, _path_of(row, images, file, columns), file, columns)
            _check_text(file, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {file}: {error}", "give a CSV or JSONL file in UTF-8"
        ) from None
    if not made.labels:
        raise UserError(f"{file} lists no images", "write one line per image:  path,label")
    _check_columns(file, names, columns)
    has_labels = (columns.label or "label") in names
    return replace(made, columns=tuple(names), has_labels=has_labels)


def _add_row(made: Manifest, row: Row, path: str, file: Path, columns: Columns) -> None:
    if path in made.labels:
        raise UserError(f"{file} lists {path} twice", "keep one of the two lines")
    values = {name: value for name, value in row.values.items() if name != columns.path}
    if columns.split:
        made.sets[path] = _read_set(values.pop(columns.split, None), file, row.number)
    if columns.group:
        group = _read(values.pop(columns.group, None), columns.group, file, row.number)
        if group:
            made.groups[path] = group
    label_column = columns.label or "label"
    has_label, given = label_column in values, values.pop(label_column, None)
    made.labels[path] = _read(given, label_column, file, row.number)
    if has_label and not made.labels[path]:
        made.missing[written(given)] = made.missing.get(written(given), 0) + 1
    if values:
        made.extras[path] = values


def choose_columns(columns: tuple[str, str, str, str], manifest: Path | None) -> Columns:
    """The columns named by the options.

    Args:
        columns: The options for path, label, split and group; empty if not given.

    Raises:
        UserError: An option would be ignored.
    """
    kinds = ("path", "label", "split", "group")
    given = [kind for kind, name in zip(kinds, columns, strict=True) if name]
    if given and manifest is None:
        raise UserError(
            f"--{given[0]}-column has no effect without --manifest",
            "add  --manifest FILE",
        )
    path, label, split, group = columns
    return Columns(path or "path", label, split, group)


def match_files(
    files: Sequence[ImageFile], manifest: Manifest
) -> tuple[dict[str, str], list[Refusal]]:
    """Match files to lines: path in the folder → path in the manifest.

    A path that does not exist as written is tried with slashes instead of backslashes, and with "é"
    in one character or in two: Windows writes the former, macOS the latter.

    Returns:
        The files that the manifest lists, and refusals of those that only one of the two has.

    Raises:
        UserError: Two lines match one file.
    """
    present = {file.path for file in files}
    by_form: dict[str, list[str]] = {}
    for path in present:
        by_form.setdefault(unicodedata.normalize("NFC", path), []).append(path)
    line_of: dict[str, str] = {}
    refused = []
    for listed in manifest.labels:
        found = _find(listed, present, by_form)
        if not found:
            reason = "the folder has no such image"
            refused.append(Refusal(listed, "only in the manifest", reason))
        elif found in line_of:
            raise UserError(
                f"the manifest lists {found} twice, as {line_of[found]} and as {listed}",
                "keep one of the two lines",
            )
        else:
            line_of[found] = listed
    refused += [
        Refusal(file.path, "not in the manifest", "the manifest does not list it")
        for file in files
        if file.path not in line_of
    ]
    return line_of, refused


def _find(listed: str, present: set[str], by_form: Mapping[str, list[str]]) -> str:
    """The file of a line; empty if there is none, or more than one."""
    for path in dict.fromkeys((listed, Path(listed.replace("\\", "/")).as_posix())):
        if path in present:
            return path
        alike = by_form.get(unicodedata.normalize("NFC", path), [])
        if len(alike) == 1:
            return alike[0]
    return ""


def _check_columns(file: Path, names: Collection[str], columns: Columns) -> None:
    has = f"only {', '.join(names)}"
    if columns.path not in names:
        raise UserError(f"{file} has no column named {columns.path}, {has}", _path_remedy(names))
    wanted = (("label", columns.label), ("split", columns.split), ("group", columns.group))
    for kind, column in wanted:
        if column and column not in names:
            raise UserError(
                f"{file} has no column named {column}, {has}",
                f"set --{kind}-column to one of those",
            )
    given = [column for _, column in wanted if column] + [columns.path]
    if not columns.label:
        given.append("label")
    if twice := [column for column, count in Counter(given).items() if count > 1]:
        raise UserError(
            f"the column {twice[0]} of {file} is used twice",
            "use different columns for --path-column, --label-column, --split-column and "
            "--group-column",
        )


def _path_remedy(names: Collection[str]) -> str:
    if len(names) == 1 and any(mark in name for name in names for mark in ";\t|"):
        return "separate the columns by commas, or by tabs in a file that ends in .tsv"
    by_word = {name.casefold(): name for name in names}
    likely = [by_word[word] for word in ("path", *_PATH_NAMES) if word in by_word]
    if likely:
        return f"add  --path-column {likely[0]}"
    return "its first line must name the columns:  path,label  (or set --path-column)"


def _path_of(row: Row, images: Path, file: Path, columns: Columns) -> str:
    if not row.values.get(columns.path):
        raise UserError(
            f"{file}, line {row.number}, has no {columns.path}",
            "each line needs the path of an image",
        )
    return _inside(str(row.values[columns.path]), images, file, row.number)


def _read(value: object, column: str, file: Path, line: int) -> str:
    try:
        return read_label(value)
    except LabelError as error:
        raise UserError(
            f"{file}, line {line}, has {error} in the column {column}",
            f"write one short text or number per image in {column}, or choose another column",
        ) from None


def _read_set(value: object, file: Path, line: int) -> str:
    text = "" if value is None else str(value).strip()
    if name := set_of_word(text):
        return name
    problem = f"has the split {text}, which is not" if text else "has no split; it must be"
    raise UserError(
        f"{file}, line {line}, {problem} one of {', '.join(SET_NAMES)}",
        "write one of those (training, valid, validation and testing work too), or remove the line",
    )


def _check_text(file: Path, row: Row) -> None:
    try:
        json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{file}, line {row.number}, has an incomplete character (a lone surrogate)",
            "write the complete character, in UTF-8",
        ) from None


def _inside(path: str, images: Path, file: Path, line: int) -> str:
    plain = Path(path)
    if plain.is_absolute():
        if not plain.is_relative_to(images.absolute()):
            raise UserError(
                f"{file}, line {line}, lists {path}, which is not in {images}",
                "write paths relative to the image folder",
            )
        plain = plain.relative_to(images.absolute())
    if ".." in plain.parts:
        raise UserError(
            f"{file}, line {line}, lists {path}, which leads out of {images}",
            "write paths relative to the image folder",
        )
    return plain.as_posix()
