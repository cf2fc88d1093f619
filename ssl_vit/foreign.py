"""Untrusted files, read in one place: bounded, decoded, validated.

A shard set, an export or a cluster profile may come from a stranger, and a file of a run folder
from a disk that was full. Whatever is wrong with one becomes a :class:`UserError` that names the
file, never another exception. No torch here.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from ssl_vit.errors import UserError

MIB = 2**20
# Values of a YAML file with its aliases expanded, and levels; our own have a hundred and four.
_MOST_VALUES, _MOST_DEPTH = 10_000, 32
_LONGEST_VALUE = 60  # characters of a value in a message


class Document(BaseModel):
    """Base class for the content of untrusted files: unknown keys are ignored, values are not
    converted.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


D = TypeVar("D", bound=BaseModel)
T = TypeVar("T")

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things or bytes, exact in any JSON reader."""
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""A time since 1970, or a duration."""


def read_bounded(path: Path, remedy: str, most_bytes: int = 16 * MIB) -> bytes:
    """The content of a file.

    Args:
        remedy: What to do if it cannot be used, for the message.
        most_bytes: Larger files are refused.

    Raises:
        UserError: It cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"cannot read {path}: {first_line(error)}", remedy) from None
    if len(content) > most_bytes:
        raise UserError(f"{path} is larger than {most_bytes // MIB:,} MiB", remedy)
    return content


def parse_json(content: bytes | str, source: str, remedy: str) -> dict[str, Any]:
    """The object in a JSON text; its strings are valid Unicode, its nesting is at most 200 deep,
    its integers have at most 4,300 digits.

    Args:
        source: Path or URL of the file, for the message.
        remedy: What to do if it cannot be used.

    Raises:
        UserError: It is not valid JSON, or not an object.
    """
    try:
        values = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON: {first_line(error)}", remedy) from None
    if not isinstance(values, dict):
        raise UserError(f"{source} is not a JSON object", remedy)
    return values


def read_json(path: Path, remedy: str, most_bytes: int = 16 * MIB) -> dict[str, Any]:
    """:func:`parse_json` of a file."""
    return parse_json(read_bounded(path, remedy, most_bytes), str(path), remedy)


def checked(kind: type[D], values: dict[str, Any], source: str, remedy: str) -> D:
    """Validate decoded values as a document.

    Raises:
        UserError: A key is missing, or a value has the wrong type or is out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
        )
        if first["type"] == "missing":
            problem = f"{source} has no {place[1:]}"
        else:
            found = repr(first["input"])
            if len(found) > _LONGEST_VALUE:
                found = found[:_LONGEST_VALUE] + "…"
            problem = f"{source}: {place[1:] or 'it'}={found}: {first['msg']}"
        raise UserError(problem, remedy) from None


def json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects in lines of JSON; a damaged line, or one that a kill cut short, is skipped."""
    for line in lines:
        try:
            yield parse_json(line, "", "")
        except UserError:
            continue


def typed_lines(kind: type[T], lines: Iterable[str]) -> Iterator[T]:
    """:func:`json_lines` as documents or dataclasses; a line that does not validate is skipped."""
    adapter = TypeAdapter(kind)
    for line in lines:
        with contextlib.suppress(ValidationError):
            yield adapter.validate_json(line, strict=True)


def parse_yaml(text: str, source: str, remedy: str = "fix the file") -> dict[str, Any]:
    """The mapping in a YAML text: JSON's types, with strings as keys. Dates stay strings.

    Raises:
        UserError: It is not valid YAML, not a mapping, or too deep or large.
    """
    try:
        _bound(text)
        values = yaml.load(text, Loader=_Loader)
    except MemoryError:
        raise
    except Exception as error:  # its constructors raise KeyError and IndexError too
        reason = " ".join(str(error).split())
        raise UserError(f"{source} is not readable as YAML: {reason}", remedy) from None
    if values is None:
        return {}  # comments only
    if not isinstance(values, dict):
        raise UserError(f"{source} is not a YAML mapping", "write lines such as  name: value")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """:func:`parse_yaml` of a file."""
    content = read_bounded(path, "make it readable", MIB)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8", "save it as UTF-8") from None
    return parse_yaml(text, str(path))


def _bound(text: str) -> None:
    """Refuse what would be too deep or, with its aliases expanded, too large: PyYAML's parser is a
    loop, its constructor recurses.
    """
    sizes: dict[str, int] = {}
    # (anchor, values before it) of every open collection
    opened: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise ValueError(f"*{event.anchor} refers to itself")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        if len(opened) > _MOST_DEPTH:
            raise ValueError(f"it is more than {_MOST_DEPTH} levels deep")
        if count > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values")


class _Loader(yaml.SafeLoader):
    """YAML as JSON types: 1e-3 is a number, 1:30 and a date are strings, as in YAML 1.2; sets,
    bytes and the like are refused, and so are duplicate keys.
    """

    yaml_constructors = {  # noqa: RUF012 - as PyYAML declares it
        **{
            f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[
                f"tag:yaml.org,2002:{name}"
            ]
            for name in ("null", "bool", "int", "float", "str", "seq")
        },
        None: yaml.SafeLoader.yaml_constructors[None],
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    names: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError("a key is not a string")
        if key.value in names:
            raise ValueError(f"duplicate key {key.value}")
        names.add(key.value)
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]{1,64}|0b[01_]{1,64})$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # A file system's error, as Rust's libraries format it.
    found = re.search(r"I/O error: (.+) \(os error \d+\)", line)
    return found[1] if found else line
