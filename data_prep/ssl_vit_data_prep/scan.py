"""Finding the images of a folder. Nothing is opened: names and sizes are all that a plan needs."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.errors import UserError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by its name; nobody has looked inside yet."""

    path: str
    """Relative to the image folder, with forward slashes."""
    num_bytes: int


def find_images(images: Path) -> list[ImageFile]:
    """Every image file below a folder, sorted by path.

    Hidden files and folders are skipped. Links are followed, except a folder's link to one of its
    own ancestors.

    Raises:
        UserError: No such folder, one that cannot be listed, or one without images.
    """
    if not images.is_dir():
        state = "is not a folder" if images.exists() else "does not exist"
        raise UserError(f"image folder {images} {state}", "give the folder that holds the images")
    try:
        found = sorted(_walk(str(images), "", frozenset()), key=lambda file: file.path)
    except OSError as error:
        raise UserError(
            f"cannot list {error.filename}: {error.strerror}", "make it readable, or take it out"
        ) from None
    if not found:
        raise UserError(
            f"no images in {images} or its sub-folders",
            f"give a folder with files ending in {', '.join(IMAGE_ENDINGS)}",
        )
    return found


def ending_of(path: str) -> str:
    """The file ending in lower case without its dot: "jpg" for `a/b.JPG`; empty if none."""
    return os.path.splitext(path)[1][1:].lower()


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[ImageFile]:
    state = os.stat(folder)
    identity = (state.st_dev, state.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {identity})
            elif ending_of(entry.name) in IMAGE_ENDINGS:
                if entry.is_file():
                    yield ImageFile(f"{prefix}{entry.name}", entry.stat().st_size)
                elif not os.path.exists(entry.path):
                    # A link to nowhere: packing will fail to read it and so report it.
                    yield ImageFile(f"{prefix}{entry.name}", 0)
