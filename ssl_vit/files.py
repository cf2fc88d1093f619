"""Files: replaced whole or not at all, and named so that their names can be written down."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def share_like_folder(file: Path) -> None:
    """Give a file the permissions of its folder, as far as they make sense for a file: safetensors
    writes for its owner alone, and a group could not read a colleague's exports.
    """
    file.chmod(file.parent.stat().st_mode & 0o666)


def readable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are none are spelled out as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def hash_file(path: Path) -> str:
    """sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
