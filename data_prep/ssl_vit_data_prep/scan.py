"""Finding the images of a folder. No file is opened: a plan needs only names and sizes."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.data.formats import ENDINGS, name_of_ending
from ssl_vit.errors import UserError
from ssl_vit_data_prep.refusals import Refusal


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file with an image's ending; its content is not checked yet."""

    path: str
    """Relative to the image folder, with forward slashes."""
    num_bytes: int
    changed_ns: int
    """When its content was last changed, in nanoseconds of the system's clock."""


@dataclass(frozen=True)
class Scan:
    """The content of a folder."""

    files: list[ImageFile]
    """Sorted by path."""
    refused: list[Refusal]
    """All other files, including hidden ones."""
    folders: tuple[str, ...] = ()
    """Every visited folder, with or without images, relative to the image folder."""


def find_images(images: Path) -> Scan:
    """Find every file below a folder.

    Links are followed, except a folder's link to one of its own ancestors; hidden folders are
    skipped.

    Raises:
        UserError: No such folder, or one without images.
    """
    if not images.is_dir():
        state = "is not a folder" if images.exists() else "does not exist"
        raise UserError(f"image folder {images} {state}", "give the folder that holds the images")
    files: list[ImageFile] = []
    refused: list[Refusal] = []
    folders: list[str] = []
    for found in _walk(str(images), "", frozenset()):
        if isinstance(found, ImageFile):
            files.append(found)
        elif isinstance(found, str):
            folders.append(found)
        else:
            refused.append(found)
    if not files:
        raise UserError(
            f"no images in {images} or its sub-folders{_most_frequent(refused)}",
            f"give a folder with files ending in {', '.join(ENDINGS)}",
        )
    return Scan(sorted(files, key=lambda file: file.path), refused, tuple(sorted(folders)))


def _most_frequent(refused: list[Refusal]) -> str:
    """The most frequent kind of other files, for a message."""
    reasons = Counter(each.reason for each in refused if each.kind == "no image ending")
    if not reasons:
        return ""
    reason, count = reasons.most_common(1)[0]
    return f"; the most frequent of the other files, {count:,} in all: {reason}"


def ending_of(path: str) -> str:
    """The file ending in lower case without its dot: "jpg" for `a/b.JPG`; empty if none."""
    return os.path.splitext(path)[1][1:].lower()


def _walk(
    folder: str, prefix: str, above: frozenset[tuple[int, int]]
) -> Iterator[ImageFile | Refusal | str]:
    """The content of a folder; its sub-folders by their path."""
    try:
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in above:
            yield Refusal(prefix.rstrip("/"), "link in a circle", "it points to a folder above it")
            return
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        yield Refusal(prefix.rstrip("/"), "unreadable", f"cannot be listed: {error.strerror}")
        return
    inside = above | {(state.st_dev, state.st_ino)}
    for entry in listed:
        path = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            yield Refusal(path, "hidden", "its name begins with a dot")
        elif _is_folder(entry):
            yield path
            yield from _walk(entry.path, f"{path}/", inside)
        else:
            yield _look_at(entry, path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _look_at(entry: os.DirEntry[str], path: str) -> ImageFile | Refusal:
    try:
        state = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Refusal(path, "link in a circle", "it points to itself")
        if entry.is_symlink():
            return Refusal(path, "broken link", f"its target cannot be opened: {error.strerror}")
        return Refusal(path, "unreadable", str(error.strerror))
    if not stat.S_ISREG(state.st_mode):
        return Refusal(path, "special file", "a pipe, socket or device")
    if (ending := ending_of(entry.name)) not in ENDINGS:
        name = f" ({name_of_ending(ending)})" if name_of_ending(ending) else ""
        reason = f"it ends in .{ending}{name}" if ending else "no ending"
        return Refusal(path, "no image ending", reason)
    return ImageFile(path, state.st_size, state.st_mtime_ns)
