"""The lines of a text table in CSV, TSV or JSON lines."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    number: int
    """Line number from 1, as in an editor."""
    values: dict[str, Any]
    is_table: bool
    """Whether all lines have the same columns."""


def read_rows(file: Path) -> Iterator[Row]:
    """The lines of a `.csv`, `.tsv`, `.jsonl` or `.json` (lines) file, one after the other.

    Raises:
        UserError: It has another ending, or a line has too many columns or invalid JSON.
    """
    ending = file.suffix.lower()
    if ending not in (".csv", ".tsv", ".jsonl", ".json", ".ndjson"):
        raise UserError(
            f"{file} does not have the ending of a manifest", "use a .csv, .tsv or .jsonl file"
        )
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if ending in (".csv", ".tsv"):
            yield from _table_rows(file, stream, "\t" if ending == ".tsv" else ",")
        else:
            yield from _json_rows(file, stream)


def _table_rows(file: Path, stream: Iterable[str], delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(stream, delimiter=delimiter)
    names = [name.strip() for name in reader.fieldnames or ()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{file} has two columns named {twice[0]}", "rename or remove one of them")
    reader.fieldnames = names
    for row in reader:
        if None in row:
            raise UserError(
                f"{file}, line {reader.line_num}, has more columns than the first line",
                "quote values that contain a comma",
            )
        yield Row(reader.line_num, row, is_table=True)


def _json_rows(file: Path, stream: Iterable[str]) -> Iterator[Row]:
    for number, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}, is not valid JSON: {error}",
                "write one JSON object per line (pandas: orient='records', lines=True)",
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f"{file}, line {number}, has no path: it is not a JSON object",
                "write one JSON object per line (pandas: orient='records', lines=True)",
            )
        yield Row(number, row, is_table=False)
