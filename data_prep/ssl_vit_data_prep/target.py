"""The folder that shards go into: it must be ours to fill."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.data.index_file import INDEX_FILE, SAMPLES_FILE
from ssl_vit.data.urls import is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit.units import format_bytes
from ssl_vit_data_prep.contact_sheet import SHEET_FILE
from ssl_vit_data_prep.layout import SET_NAMES
from ssl_vit_data_prep.parts import unfinished_command
from ssl_vit_data_prep.refusals import REFUSED_FILE

# Sub-folders that a pack may make, and the folder itself.
_SETS = ("", *SET_NAMES)
_PARTIALS = tuple(
    f".{name}.partial-*"
    for name in ("shard-*.tar", INDEX_FILE, SAMPLES_FILE, REFUSED_FILE, SHEET_FILE)
)
_OURS = ("shard-*.tar", SAMPLES_FILE, REFUSED_FILE, SHEET_FILE)


def check_outside(folder: Path, images: Path) -> None:
    """Refuse to write shards among the images.

    Raises:
        UserError: The folder lies in that of the images.
    """
    if folder.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"the shard folder {folder} lies inside the image folder {images}",
            "choose a folder beside it",
        )


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else.

    Args:
        overwrite: Whether it may hold a set of shards.

    Raises:
        UserError: It is a file, or holds files of others, or a set that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder", "choose another folder for the shards")
    if not folder.is_dir() or unfinished_command(folder) in ("pack", "reshard"):
        return  # what lies there was written by one that did not end
    check_no_set(folder, overwrite)
    if not _holds_set(folder) and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds other files, such as {min(folder.iterdir()).name}",
            "choose a new or an empty folder",
        )


def check_no_set(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a set of shards, unless that is asked for.

    Raises:
        UserError: One is there.
    """
    if not overwrite and _holds_set(folder):
        raise UserError(
            f"{folder} already holds a set of shards", "choose another folder, or --overwrite"
        )


def check_apart(folder: Path, sources: Sequence[str]) -> None:
    """Refuse to write where the shards lie that are read.

    Args:
        sources: Paths and URLs of those.

    Raises:
        UserError: One lies in the folder, or in a sub-folder that would be replaced with it.
    """
    ours = {(folder / name).resolve() for name in _SETS}
    for source in sources:
        if is_local(source) and local_path(source).resolve().parent in ours:
            raise UserError(
                f"the shards that are read lie in {folder}, where the new ones would go",
                "choose another folder",
            )


def remove_set(folder: Path) -> None:
    """Remove what an earlier command wrote, and nothing else."""
    remove_partials(folder)
    for name in _SETS:
        # The index goes first: without it, what is left of the old set is no set any more.
        (folder / name / INDEX_FILE).unlink(missing_ok=True)
        for pattern in _OURS:
            for path in (folder / name).glob(pattern):
                path.unlink()


def remove_partials(folder: Path) -> None:
    """Remove the half-written files of a command that was killed."""
    for name in _SETS:
        for pattern in _PARTIALS:
            for path in (folder / name).glob(pattern):
                path.unlink()


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that is too small.

    Args:
        num_bytes: Of the shards, those that are there already included.

    Raises:
        UserError: They do not fit.
    """
    free = shutil.disk_usage(folder).free
    for name in _SETS:
        for pattern in _OURS:
            free += sum(path.stat().st_size for path in (folder / name).glob(pattern))
    if num_bytes > free:
        raise UserError(
            f"{folder} has room for {format_bytes(free)}, "
            f"the shards need {format_bytes(num_bytes)}",
            "choose a folder on a larger disk",
        )


def _holds_set(folder: Path) -> bool:
    return any((folder / name / INDEX_FILE).exists() for name in _SETS)
