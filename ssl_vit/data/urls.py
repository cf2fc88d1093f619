"""Where shards lie: a path, or a URL of a closed set of schemes. Nothing is opened here.

Braces stand for numbers, as webdataset writes them: `shard-{000000..000007}.tar` are eight shards.
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
"""That braces may stand for."""

_RANGE = re.compile(r"\{([-+]?\d+)\.\.([-+]?\d+)(?:\.\.([-+]?\d+))?\}")


def scheme_of(location: str) -> str:
    """The scheme of a URL in lower case; empty for a path.

    Raises:
        UserError: It is a URL of a scheme we do not know.
    """
    scheme, colon, rest = location.partition(":")
    if not colon or not scheme.isalnum() or not (rest.startswith("//") or scheme == "pipe"):
        return ""
    if scheme.lower() not in SCHEMES:
        raise UserError(
            f"{location} is a URL of an unknown kind, {scheme}:",
            f"known are paths and {', '.join(f'{known}:' for known in SCHEMES)}",
        )
    return scheme.lower()


def is_local(location: str) -> bool:
    """Whether it is a path, or a `file:` URL."""
    return scheme_of(location) in ("", "file")


def local_path(location: str) -> Path:
    """The path that a local location means."""
    scheme_of(location)  # refuses a URL of an unknown kind
    return path_of(location)


def expand(source: str) -> list[str]:
    """The locations that a source with braces stands for; itself where it has none.

    Raises:
        UserError: A brace is not closed, or they stand for more than ``MOST_SHARDS``.
    """
    try:
        # Ranges first: braceexpand makes a list of each.
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
        f"the braces of {source} stand for more than {MOST_SHARDS:,} shards", "name fewer"
    )


def split_base(location: str) -> tuple[str, str]:
    """(folder with its last slash, name) of a location; a query belongs to the name."""
    path, question, query = location.partition("?")
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}", f"{name}{question}{query}"


def name_of(location: str) -> str:
    """The file's name, without folder and query."""
    return split_base(location)[1].partition("?")[0]


def check_allowed(location: str, allow_shell_urls: bool) -> None:
    """Refuse shell commands unless the user asked for them.

    Raises:
        UserError: It is a `pipe:` URL, and they are not allowed.
    """
    if scheme_of(location) == "pipe" and not allow_shell_urls:
        raise UserError(
            f"{location} would run a command in a shell, and lists of shards come from strangers",
            "if you trust it:  data.allow_shell_urls=true,  or --allow-shell-urls where a command "
            "has that option",
        )
