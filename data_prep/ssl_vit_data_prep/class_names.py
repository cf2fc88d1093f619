"""Reading labels, and the classes of a set of labels. Pure functions of text.

A label is a name. Numbers are names too, but they sort as numbers and add no classes in between:
the labels 0, 5 and 1000000 are three classes. The number of a class is its place in that order.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ssl_vit.errors import UserError

# How pandas, numpy, SQL and Python write a missing value. "none" and "NA" are absent on purpose:
# they occur as names of classes.
MISSING = frozenset(
    ("nan", "NaN", "-nan", "None", "null", "NULL", "<NA>", "NaT", "N/A", "n/a", "#N/A")
)
LONGEST_LABEL = 1000
"""Most characters of a label."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")


class LabelError(ValueError):
    """A value that cannot be the label of an image; the message describes the value."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a set of labels."""

    names: tuple[str, ...]
    """By class number."""
    numbers: dict[str, int]
    """Label → class number."""

    @property
    def merged(self) -> tuple[str, ...]:
        """Labels that are other notations of their class's name."""
        return tuple(label for label, number in self.numbers.items() if label != self.names[number])


def read_label(value: object) -> str:
    """The label of a value; empty for none.

    Surrounding blanks are ignored, "é" is the same in one character and in two, and a whole number
    is the same with and without decimals: pandas writes 3 as 3.0 if a column has gaps.

    Raises:
        LabelError: It is a list, a mapping, longer than ``LONGEST_LABEL``, or of several lines.
    """
    if isinstance(value, (list, tuple, dict)):
        raise LabelError(_describe(value))
    if value is None:
        return ""
    # str(True) is Python's spelling, "true" is JSON's.
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    text = unicodedata.normalize("NFC", text.strip().removeprefix("\ufeff").strip())
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise LabelError("a text with a line break or another control character")
    if len(text) > LONGEST_LABEL:
        raise LabelError(f"a text of {len(text):,} characters")
    if text[:1] in ("[", "{", "(") and (parsed := _parse(text)) is not None:
        raise LabelError(_describe(parsed))
    if whole := _WHOLE.fullmatch(text):
        text = whole[1]
    return "" if text in MISSING or text == "-1" else text


def written(value: object) -> str:
    """The name of a value that means "no label" in a summary."""
    text = "" if value is None else str(value).strip()
    return text or "blank"


def describe_missing(counts: Mapping[str, int]) -> str:
    """The texts that were read as "no label" and their counts, for a summary; empty if none."""
    return ", ".join(f"{text} ({count:,})" for text, count in sorted(counts.items()))


def number_classes(labels: Iterable[str]) -> ClassTable:
    """Classes by number if all labels are numbers, else by name.

    Numbers that are equal (7 and 007) are one class, named by the shortest of them.
    """
    texts = sorted(set(labels), key=lambda text: (len(text), text))
    values = {text: value for text in texts if (value := number_of(text)) is not None}
    if len(values) < len(texts):
        names = sorted(texts)
        return ClassTable(tuple(names), {name: number for number, name in enumerate(names)})
    shortest: dict[Decimal, str] = {}
    for text in texts:
        shortest.setdefault(values[text], text)
    order = {value: number for number, value in enumerate(sorted(shortest))}
    names = [shortest[value] for value in order]
    return ClassTable(tuple(names), {text: order[value] for text, value in values.items()})


def number_by_names(labels: Iterable[str], names: Sequence[str]) -> ClassTable:
    """Classes with given names: a label is one of the names, or the number of one, from 0.

    Raises:
        UserError: A label is neither, or is the name of one class and the number of another.
    """
    texts = sorted(set(labels))
    by_name = {name: number for number, name in enumerate(names)}
    # Names may be numbers: if all labels are among them, the labels are names.
    all_named = all(text in by_name for text in texts)
    numbers = {}
    for text in texts:
        named, counted = by_name.get(text), _place(text, len(names))
        if named is not None and counted is not None and named != counted and not all_named:
            raise UserError(
                f"the label {text} is the name of class {named} and the number of class {counted} "
                f"({names[counted]})",
                "write all labels as names, or all as numbers",
            )
        number = counted if named is None else named
        if number is None:
            raise UserError(
                f"the label {text} is not one of the {len(names):,} classes",
                "add it to the file of classes; a number means a line, counted from 0",
            )
        numbers[text] = number
    return ClassTable(tuple(names), numbers)


def number_of(text: str) -> Decimal | None:
    """The value of a label that is a number."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a file with one class per line, in its order.

    Raises:
        UserError: It cannot be read, is empty, or has a blank line or a duplicate name, which would
            shift the numbers of the lines after it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}", "give a text file in UTF-8 with one name per line"
        ) from None
    names = [unicodedata.normalize("NFC", line.strip()) for line in text.rstrip().split("\n")]
    if not text.strip():
        raise UserError(f"{path} has no class names", "write one name per line")
    first: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name:
            raise UserError(
                f"{path}, line {line}, is blank: the classes after it would have other numbers",
                "remove the line, or name the class",
            )
        if name in first:
            raise UserError(
                f"{path} names {name} twice, in lines {first[name]} and {line}",
                "give every class one line and a different name",
            )
        first[name] = line
    return tuple(names)


def _place(text: str, num_classes: int) -> int | None:
    value = number_of(text)
    if value is None or value != value.to_integral_value() or not 0 <= value < num_classes:
        return None
    return int(value)


def _parse(text: str) -> list[object] | tuple[object, ...] | dict[object, object] | None:
    """A list or mapping written as text in JSON or Python; None for any other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, (list, tuple, dict)):
            return parsed
    return None


def _describe(value: object) -> str:
    kind = "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{kind}, {text if len(text) <= 60 else f'{text[:60]}…'}"
