"""A list of images with their labels, as CSV or JSON lines, instead of classes by folder.

A `path` column, relative to the image folder, and a `label` column that may be empty; further
columns travel with the image as the sample's `.json`.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.scan import ImageFile


@dataclass(frozen=True)
class Manifest:
    """What a manifest says."""

    labels: dict[str, str]
    """Path → label; empty for none."""
    extras: dict[str, dict[str, Any]]
    """Path → its further columns, where there are any."""

    def classes(self) -> list[str]:
        """Names of the classes: numbers in their order, else texts in theirs."""
        names = {label for label in self.labels.values() if label}
        if all(name.isdecimal() for name in names):
            return sorted(names, key=int)
        return sorted(names)


def read_manifest(file: Path, images: Path) -> Manifest:
    """Read a `.csv`, `.tsv`, `.jsonl` or `.json` (lines) file.

    Args:
        file: The manifest.
        images: Folder that its paths are relative to; absolute ones must lie in it.

    Raises:
        UserError: It cannot be read, lacks the column, or lists a path twice or outside.
    """
    labels: dict[str, str] = {}
    extras: dict[str, dict[str, Any]] = {}
    try:
        for line, row in _rows(file):
            if not isinstance(row, dict) or not row.get("path"):
                raise UserError(
                    f"{file}, line {line}, has no path", "each line needs  path  (and  label)"
                )
            path = _inside(str(row.pop("path")), images, file, line)
            if path in labels:
                raise UserError(f"{file} lists {path} twice", "keep one of the two lines")
            label = row.pop("label", "")
            labels[path] = "" if label is None else str(label)
            if row:
                extras[path] = row
            if not _is_text(f"{path}{labels[path]}{json.dumps(row, ensure_ascii=False)}"):
                raise UserError(
                    f"{file}, line {line}, has half a character (a lone surrogate)",
                    "write the whole character, in UTF-8",
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {file}: {error}", "give a CSV or JSONL file in UTF-8"
        ) from None
    if not labels:
        raise UserError(f"{file} lists no images", "write one line an image:  path,label")
    return Manifest(labels, extras)


def split_by_manifest(
    files: list[ImageFile], manifest: Manifest
) -> tuple[list[ImageFile], list[Refusal]]:
    """The files that a manifest lists, and what only one of the two has."""
    present = {file.path for file in files}
    listed = [file for file in files if file.path in manifest.labels]
    refused = [
        Refusal(file.path, "not in the manifest", "the manifest does not list it")
        for file in files
        if file.path not in manifest.labels
    ]
    refused += [
        Refusal(path, "only in the manifest", "there is no such image in the folder")
        for path in manifest.labels
        if path not in present
    ]
    return listed, refused


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number, columns) of every line."""
    ending = file.suffix.lower()
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if ending in (".csv", ".tsv"):
            reader = csv.DictReader(stream, delimiter="\t" if ending == ".tsv" else ",")
            if "path" not in (reader.fieldnames or ()):
                raise UserError(
                    f"{file} has no column named path, only {', '.join(reader.fieldnames or ())}",
                    "its first line must name the columns:  path,label",
                )
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{file}, line {reader.line_num}, has more columns than the first line",
                        "quote values that hold a comma",
                    )
                yield reader.line_num, row
        elif ending in (".jsonl", ".json", ".ndjson"):
            for number, text in enumerate(stream, start=1):
                if text.strip():
                    try:
                        yield number, json.loads(text)
                    except ValueError as error:
                        raise UserError(
                            f"{file}, line {number}, is no JSON: {error}", "one object a line"
                        ) from None
        else:
            raise UserError(
                f"{file} is no manifest by its ending", "give a .csv, .tsv or .jsonl file"
            )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inside(path: str, images: Path, file: Path, line: int) -> str:
    plain = Path(path)
    if plain.is_absolute():
        if not plain.is_relative_to(images.absolute()):
            raise UserError(
                f"{file}, line {line}, names {path}, which is not in {images}",
                "write paths relative to the image folder",
            )
        plain = plain.relative_to(images.absolute())
    if ".." in plain.parts:
        raise UserError(
            f"{file}, line {line}, names {path}, which leads out of {images}",
            "write paths relative to the image folder",
        )
    return plain.as_posix()
