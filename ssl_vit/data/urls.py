"""Locations of shards: paths, and URLs of a fixed set of schemes. Nothing is opened here.

Braces are expanded as in webdataset: `shard-{000000..000007}.tar` are eight shards.
"""

import re
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from ssl_vit.errors import UserError
from ssl_vit.files import path_of

SCHEMES = ("https", "http", "s3", "gs", "hf", "file", "pipe")
"""`file` is a local path, `pipe` a shell command whose output is the shard."""


MOST_SHARDS = 2**20
"""Most shards that the braces of a source may expand to."""

_RANGE = re.compile(r"\{([-+]?\d+)\.\.([-+]?\d+)(?:\.\.([-+]?\d+))?\}")


def scheme_of(location: str) -> str:
    """The scheme of a URL in lower case; empty for a path.

    Raises:
        UserError: It is a URL of an unsupported scheme.
    """
    scheme, colon, rest = location.partition(":")
    if not colon or not scheme.isalnum() or not (rest.startswith("//") or scheme == "pipe"):
        return ""
    if scheme.lower() not in SCHEMES:
        raise UserError(
            f"{location} is a URL of an unsupported scheme, {scheme}:",
            f"use a path or one of {', '.join(f'{known}:' for known in SCHEMES)}",
        )
    return scheme.lower()


def is_local(location: str) -> bool:
    """Whether it is a path, or a `file:` URL."""
    return scheme_of(location) in ("", "file")


def local_path(location: str) -> Path:
    """The path of a local location."""
    scheme_of(location)  # refuses a URL of an unsupported scheme
    return path_of(location)


def expand(source: str) -> list[str]:
    """The locations that the braces of a source expand to; the source itself if it has none.

    Raises:
        UserError: A brace is not closed, or they expand to more than ``MOST_SHARDS``.
    """
    try:
        # Ranges first: braceexpand makes a list from each.
        counts = [
            abs(int(last) - int(first)) // max(1, abs(int(step or 1))) + 1
            for first, last, step in _RANGE.findall(source)
        ]
        if sum(counts) <= MOST_SHARDS:
            found = list(islice(braceexpand(source), MOST_SHARDS + 1))
            if len(found) <= MOST_SHARDS:
                return found
    except (ValueError, RecursionError):
        raise UserError(
            f"the braces of {source} do not match", "write for example  shard-{000000..000007}.tar"
        ) from None
    raise UserError(
        f"the braces of {source} expand to more than {MOST_SHARDS:,} shards", "use fewer"
    )


def split_base(location: str) -> tuple[str, str]:
    """(folder with its trailing slash, name) of a location; a query belongs to the name."""
    path, question, query = location.partition("?")
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}", f"{name}{question}{query}"


def name_of(location: str) -> str:
    """The file's name, without folder and query."""
    return split_base(location)[1].partition("?")[0]


def check_allowed(location: str, allow_shell_urls: bool) -> None:
    """Refuse shell commands unless the user allows them.

    Raises:
        UserError: It is a `pipe:` URL, and they are not allowed.
    """
    if scheme_of(location) == "pipe" and not allow_shell_urls:
        raise UserError(
            f"{location} would run a shell command, and lists of shards may come from strangers",
            "if you trust it:  data.allow_shell_urls=true,  or --allow-shell-urls where a command "
            "has that option",
        )
