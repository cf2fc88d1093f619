"""Files: replaced atomically, with paths that every config, JSON file and URL can hold."""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ssl_vit.errors import OF_DISKS, UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a failed write
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class OptionalWrites:
    """Files that their writer can do without: a full disk is reported once, and work continues.

    Args:
        what: What is written, for the message: "exports", or a path.
        consequence: What happens now, for the message.
    """

    failed = False
    """Whether the last attempt failed."""

    def __init__(self, what: str, consequence: str) -> None:
        self.what, self.consequence = what, consequence

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Print an OSError of the block instead of raising it."""
        try:
            yield
        except OSError as error:
            if not self.failed:
                remedy = OF_DISKS.get(error.errno or 0)
                advice = f" ({remedy})" if remedy else ""
                print(
                    f"cannot write {self.what}: {error.strerror or error}{advice}. "
                    f"{self.consequence}",
                    file=sys.stderr,
                    flush=True,
                )
            self.failed = True
        else:
            self.failed = False


def share_like_folder(file: Path) -> None:
    """Give a file the permissions of its folder, as far as they apply to files: safetensors makes
    files that only their owner can read, and a group could not read a colleague's exports.
    """
    file.chmod(file.parent.stat().st_mode & 0o666)


def readable(name: str) -> str:
    """A file name as valid UTF-8: other bytes are escaped, as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def path_of(location: str) -> Path:
    """The path of a local location: a path, with `~` for the home folder, or a `file:` URL."""
    if location.lower().startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(location).path)))
    return Path(location).expanduser()


def location_of_bytes(text: str) -> str:
    """A location, or a list of some in brackets, as text: a path whose bytes are not UTF-8, which a
    config cannot hold, becomes a `file:` URL. Anything else stays.

    Raises:
        UserError: A URL that is not UTF-8.
    """
    if not re.search("[\udc80-\udcff]", text):
        return text
    if "://" in text:
        raise UserError(f"{text} is not UTF-8", "write its other bytes as %XX")
    if text.startswith("[") and text.endswith("]"):
        return f"[{','.join(location_of_bytes(part.strip()) for part in text[1:-1].split(','))}]"
    path = os.path.abspath(os.path.expanduser(text.strip("\"'")))
    return "file://" + quote(os.fsencode(path), safe="/{}.,*-_ ")


@contextlib.contextmanager
def spelled_in_utf8(path: Path) -> Iterator[Path]:
    """The path itself or, inside the block, another one to the same file: some libraries support
    UTF-8 only. The file's own name must be UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            yield Path(f"/proc/self/fd/{folder}", path.name)
        finally:
            os.close(folder)
    else:
        yield path


def to_json_line(values: Mapping[str, Any]) -> str:
    """An object as one line of JSON; bytes of file names that are not UTF-8 are escaped."""
    text = json.dumps(values, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: rf"\\x{ord(found[0]) & 0xFF:02x}", text) + "\n"


def hash_file(path: Path) -> str:
    """sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
