"""`path=value` words on a command line, and settings that were renamed."""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_vit import foreign
from ssl_vit.config import (
    Config,
    to_plain,
    unknown_path_error,
    unknown_paths,
    validate,
    with_current_names,
)
from ssl_vit.errors import UserError
from ssl_vit.files import location_of_bytes

C = TypeVar("C", bound=Config)
_QUOTE = "values are YAML; quote them against the shell"
_noted: set[str] = set()  # earlier names that this process has mentioned


def apply_overrides(config: C, overrides: Sequence[str]) -> C:
    """A new config with `path=value` words applied; values are read as YAML.

    Raises:
        UserError: A word without `=`, an unknown path, or a value that does not validate.
    """
    if not overrides:
        return config
    kind = type(config)
    merged = OmegaConf.create(to_plain(config))
    renamed: dict[str, str] = {}
    for word in overrides:
        path, equals, value = word.partition("=")
        if not equals or not path:
            raise UserError(
                f"'{word}' is not an override of the form path=value",
                "write for example  objective.mask_ratio=0.8",
            )
        nested, earlier = with_current_names(kind, _nest(path, value), config)
        for unknown, siblings in unknown_paths(kind, nested, "", config):
            raise unknown_path_error(kind, unknown, siblings, "the command line")
        value = _read_value(word)
        if isinstance(value, dict) or earlier:
            nested, earlier = with_current_names(kind, _nest(path, value), config)
            path, value = _unnest(nested, path.count("."))
        renamed |= earlier
        try:
            OmegaConf.update(merged, path, value, merge=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(
                f"cannot read the value of '{word}': {foreign.first_line(error)}", _QUOTE
            ) from None
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(
            f"cannot resolve the overrides: {foreign.first_line(error)}",
            "${…} names another config path, or an environment variable as ${oc.env:NAME}",
        ) from None
    assert isinstance(values, dict)
    note_renamed(renamed)
    return validate(kind, {str(k): v for k, v in values.items()}, "the command line")


def note_renamed(renamed: dict[str, str]) -> None:
    """Print once, from one process of a machine, which settings were renamed."""
    new = [f"{was} is now {now}" for was, now in renamed.items() if was not in _noted]
    _noted.update(renamed)
    if new and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"note: renamed settings: {', '.join(new)}", file=sys.stderr, flush=True)


def _read_value(word: str) -> Any:
    """The value of a `path=value` word: YAML, as in files."""
    text = location_of_bytes(word.partition("=")[2])
    values = foreign.parse_yaml(f"value: {text}", f"the value of '{word}'", _QUOTE)
    if values.keys() != {"value"}:
        raise UserError(f"'{word}' has more than one line", _QUOTE)
    return values["value"]


def _nest(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _unnest(nested: dict[str, Any], depth: int) -> tuple[str, Any]:
    """The path ``depth`` + 1 levels down dicts of one key each, and the value there."""
    ((key, value),) = nested.items()
    if not depth:
        return key, value
    rest, value = _unnest(value, depth - 1)
    return f"{key}.{rest}", value
