"""The base class of every config, and how YAML files are read into one; `path=value` words are in
`overrides.py`.

OmegaConf reads, pydantic validates, and nothing is changed after that. This file imports no torch:
a mistake in a config is reported before anything slow is loaded.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from ssl_vit import foreign
from ssl_vit.errors import UserError


class Config(BaseModel):
    """A frozen record of the user's settings; unknown keys and loose types are refused."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    RENAMED: ClassVar[dict[str, str]] = {}
    """Earlier names of fields → current ones; files and words with earlier names are still read."""


C = TypeVar("C", bound=Config)


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested dicts of JSON types, every field with its value."""
    return config.model_dump(mode="json")


def to_yaml(config: Config) -> str:
    """The complete config as YAML, in the order of the fields."""
    # OmegaConf quotes as it reads; plain YAML leaves a folder named 1e5 without quotes.
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def validate(kind: type[C], values: dict[str, Any], source: str) -> C:
    """Build a config from plain values.

    Raises:
        UserError: An unknown path, a value out of range or of the wrong type; names path, value and
            range.
    """
    values, _ = with_current_names(kind, values)
    for path, siblings in unknown_paths(kind, values, prefix=""):
        raise unknown_path_error(kind, path, siblings, source)
    try:
        # JSON mode: strict about types, but a YAML list may become a tuple and a string a path.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _range_error(kind, error, values) from None


def with_current_names(
    kind: type[Config], values: dict[str, Any], current: Config | None = None, prefix: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """Plain values with the current names of fields.

    Args:
        kind: The config's class.
        values: All of its values or some of them.
        current: The config they are for; decides which member of a union they mean.
        prefix: What all paths begin with.

    Returns:
        The values, and earlier path → current path of each field that was renamed.

    Raises:
        UserError: A field is given under both names.
    """
    found: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for key, value in values.items():
        name = kind.RENAMED.get(key, key)
        if name != key:
            renamed[f"{prefix}{key}"] = f"{prefix}{name}"
            if name in values:
                raise UserError(
                    f"{prefix}{key} is the earlier name of {prefix}{name}, and both are given",
                    f"leave out {prefix}{key}",
                )
        field, held = kind.model_fields.get(name), getattr(current, name, None)
        if isinstance(value, dict) and field and (inner := _config_of(field, value, held)):
            held = held if isinstance(held, inner) else None
            value, more = with_current_names(inner, value, held, f"{prefix}{name}.")
            renamed |= more
        found[name] = value
    return found, renamed


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a YAML file, OmegaConf interpolations resolved.

    Raises:
        UserError: The file is missing or is not a YAML mapping.
    """
    if not path.is_file():
        raise UserError(f"no config file at {path}", "check the path")
    try:
        values = OmegaConf.to_container(OmegaConf.create(foreign.read_yaml(path)), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(
            f"cannot resolve the values of {path}: {foreign.first_line(error)}", "fix the file"
        ) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts in which ``values`` take precedence over ``base``."""
    both = dict(base)
    for key, value in values.items():
        inner = base.get(key)
        both[key] = (
            merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return both


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted path, value) of nested dicts; lists are values."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted paths whose values differ, with both values."""
    old, new = dict(leaves(to_plain(before))), dict(leaves(to_plain(after)))
    return {
        path: (old.get(path), new.get(path))
        for path in (*old, *(p for p in new if p not in old))
        if old.get(path) != new.get(path)
    }


def field_paths(kind: type[Config], prefix: str = "") -> Iterator[str]:
    """Every dotted path a config of this kind has."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        if inner := _config_of(field):
            yield from field_paths(inner, f"{prefix}{name}.")


def unknown_path_error(
    kind: type[Config], path: str, siblings: Sequence[str], source: str
) -> UserError:
    """The error for an undefined path: the nearest name, then all names at that level."""
    known = list(field_paths(kind))
    by_leaf = {p.rpartition(".")[2]: p for p in known}
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    if not near:
        leaf = difflib.get_close_matches(path.rpartition(".")[2], list(by_leaf), n=1, cutoff=0.75)
        near = [by_leaf[leaf[0]]] if leaf else []
    parent = path.rpartition(".")[0] or "the top level"
    remedy = f"{parent} has: {', '.join(siblings)}"
    if near:
        remedy = f"did you mean {near[0]}?  {remedy}"
    return UserError(f"unknown config path {path} in {source}", remedy)


def _config_of(field: FieldInfo, values: Any = None, current: Any = None) -> type[Config] | None:
    """The config that a field holds.

    Args:
        values: Its new value; in a union, a `name` in it selects the member.
        current: Its present value; selects the member if ``values`` has no `name`.
    """
    candidates = (field.annotation, *get_args(field.annotation))
    found = [each for each in candidates if isinstance(each, type) and issubclass(each, Config)]
    if len(found) > 1 and isinstance(values, dict) and "name" in values:
        named = [each for each in found if each.model_fields["name"].default == values["name"]]
        return (named or found)[0]
    if len(found) > 1 and isinstance(current, Config):
        return type(current)
    return found[0] if found else None


def unknown_paths(
    kind: type[Config], values: dict[str, Any], prefix: str, current: Config | None = None
) -> Iterator[tuple[str, list[str]]]:
    for key, value in values.items():
        field = kind.model_fields.get(key)
        held = getattr(current, key, None)
        if field is None:
            yield f"{prefix}{key}", list(kind.model_fields)
        elif isinstance(value, dict) and (inner := _config_of(field, value, held)):
            held = held if isinstance(held, inner) else None
            yield from unknown_paths(inner, value, f"{prefix}{key}.", held)
        elif isinstance(value, dict) and get_origin(field.annotation) is not dict:
            yield f"{prefix}{key}.{next(iter(value), '')}", [f"({key} is a value, not a section)"]


def _range_error(kind: type[Config], error: ValidationError, values: dict[str, Any]) -> UserError:
    first = error.errors()[0]
    path, field, found = _look_up(kind, values, [str(part) for part in first["loc"]])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return UserError(f"{path} is not given", f"add  {path}=…")
    if first["type"] == "value_error":  # a validator of ours: its message has both halves
        problem, _, remedy = message.partition("; ")
        return UserError(problem, remedy or "choose another value")
    remedy = "choose another value"
    if field and (bounds := bounds_of(field, path)):
        remedy = f"allowed: {bounds}"
    elif field and (choices := choices_of(field)):
        one_of = "one of " if len(choices) > 1 else ""
        remedy = f"allowed: {path} {one_of}{', '.join(choices)}"
    if first["type"] == "string_type":
        remedy = f"it must be a string; quote it:  {path}=\"'{'' if found is None else found}'\""
    return UserError(f"{path}={found!r} is out of range or of the wrong type: {message}", remedy)


def _look_up(
    kind: type[Config], values: dict[str, Any], names: Sequence[str]
) -> tuple[str, FieldInfo | None, Any]:
    """The path, field and value of a pydantic location, which also has tags of union members."""
    path: list[str] = []
    field: FieldInfo | None = None
    value: Any = values
    current: type[Config] | None = kind
    for name in names:
        if current is None or name not in current.model_fields:
            continue
        path.append(name)
        field = current.model_fields[name]
        value = value.get(name) if isinstance(value, dict) else value
        current = _config_of(field, value)
    return ".".join(path) or kind.__name__, field, value


def bounds_of(field: FieldInfo, name: str) -> str:
    """A field's bounds around ``name``, as in ``0 < name < 1``; empty where it has none."""
    lower = upper = ""
    for rule in field.metadata:
        if (gt := getattr(rule, "gt", None)) is not None:
            lower = f"{gt} < "
        if (ge := getattr(rule, "ge", None)) is not None:
            lower = f"{ge} <= "
        if (lt := getattr(rule, "lt", None)) is not None:
            upper = f" < {lt}"
        if (le := getattr(rule, "le", None)) is not None:
            upper = f" <= {le}"
    return f"{lower}{name}{upper}" if lower or upper else ""


def choices_of(field: FieldInfo) -> list[str]:
    """The kinds of value or the words a field takes; empty where its type has no short name."""
    return list(_in_words(field.annotation))


def _in_words(annotation: Any) -> Iterator[str]:
    """The values that a type allows, in plain words; nothing if there is no short name."""
    arguments = get_args(annotation)
    names = {bool: "true, false", int: "a whole number", float: "a number"}
    if annotation in names:
        yield names[annotation]
    elif get_origin(annotation) is Annotated:
        rules = arguments[1].metadata
        least = next((f" from {rule.ge}" for rule in rules if hasattr(rule, "ge")), "")
        most = next((f" to {rule.le}" for rule in rules if hasattr(rule, "le")), "")
        yield from (f"{word}{least}{most}" for word in _in_words(arguments[0]))
    elif get_origin(annotation) is Literal:
        yield from map(str, arguments)
    elif get_origin(annotation) is tuple:
        yield "a list" if Ellipsis in arguments else f"a list of {len(arguments)}"
    elif get_origin(annotation) in (Union, UnionType):
        for argument in arguments:
            yield from _in_words(argument)
