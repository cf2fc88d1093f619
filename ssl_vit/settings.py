"""Settings that explain themselves: each with its sentence, and what it takes, from the configs'
own fields.
"""

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from ssl_vit.config import Config, bounds_of, choices_of, to_plain

_COLUMNS = 100


def allowed_in_words(field: FieldInfo, name: str) -> str:
    """What a field takes, such as ``0 < mask_ratio < 1`` or ``patch, conv``; empty where its type
    has no short name.
    """
    return bounds_of(field, name) or ", ".join(choices_of(field))


def sentence_of(kind: type[Config]) -> str:
    """What a section is for, in one line."""
    return " ".join((inspect.getdoc(kind) or "").split())


def commented_yaml(config: Config, heading: Sequence[str]) -> str:
    """The complete config as YAML that can be read again, with every setting's sentence and what it
    takes as comments.

    Args:
        config: Its sections become mappings.
        heading: Paragraphs for the top.
    """
    lines: list[str] = []
    for paragraph in heading:
        lines += [*_comment(paragraph, ""), "#"]
    return "\n".join([*lines[:-1], *_commented(config, to_plain(config), ""), ""])


def _commented(config: Config, plain: dict[str, Any], indent: str) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield ""
        if isinstance(value, Config):
            yield from _comment(sentence_of(type(value)), indent)
            yield f"{indent}{name}:"
            yield from _commented(value, plain[name], f"{indent}  ")
            continue
        yield from _comment(field.description or "", indent)
        if allowed := allowed_in_words(field, name):
            yield from _comment(f"Allowed: {allowed}", indent)
        # OmegaConf quotes what would otherwise be read as another type.
        written = OmegaConf.to_yaml(OmegaConf.create({name: plain[name]}))
        yield from textwrap.indent(written, indent).splitlines()


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        " ".join(text.split()),
        width=_COLUMNS,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )
