"""The folder that shards are written to: checks, and removal of what earlier commands left."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.data.index_file import INDEX_FILE, SAMPLES_FILE
from ssl_vit.data.urls import is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit.units import format_bytes
from ssl_vit_data_prep.contact_sheet import SHEET_FILE
from ssl_vit_data_prep.finished_shards import unfinished_command
from ssl_vit_data_prep.layout import SET_NAMES
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
        UserError: The folder is inside the image folder.
    """
    if folder.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"the shard folder {folder} is inside the image folder {images}",
            "choose a folder outside of it",
        )


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with other content.

    Args:
        overwrite: Whether it may have a set of shards.

    Raises:
        UserError: It is a file, or has other files, or a set that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder", "choose another folder for the shards")
    if not folder.is_dir() or unfinished_command(folder) in ("pack", "reshard"):
        return  # an unfinished command wrote its content
    check_no_set(folder, overwrite)
    if not _holds_set(folder) and any(folder.iterdir()):
        raise UserError(
            f"{folder} has other files, such as {min(folder.iterdir()).name}",
            "choose a new or an empty folder",
        )


def check_no_set(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a set of shards, unless that is allowed.

    Raises:
        UserError: There is one.
    """
    if not overwrite and _holds_set(folder):
        raise UserError(
            f"{folder} already has a set of shards", "choose another folder, or add --overwrite"
        )


def check_apart(folder: Path, sources: Sequence[str]) -> None:
    """Refuse to write into the folder of the shards that are read.

    Args:
        sources: Paths and URLs of the shards that are read.

    Raises:
        UserError: One is in the folder, or in a sub-folder that would be replaced with it.
    """
    ours = {(folder / name).resolve() for name in _SETS}
    for source in sources:
        if is_local(source) and local_path(source).resolve().parent in ours:
            raise UserError(
                f"the shards that are read are in {folder}, where the new ones would be written",
                "choose another folder",
            )


def remove_set(folder: Path) -> None:
    """Remove what an earlier command wrote, and nothing else."""
    remove_partials(folder)
    for name in _SETS:
        # The index first: without it, the remaining files are no longer a set.
        (folder / name / INDEX_FILE).unlink(missing_ok=True)
        for pattern in _OURS:
            for path in (folder / name).glob(pattern):
                path.unlink()


def remove_partials(folder: Path) -> None:
    """Remove the half-written files of a killed command."""
    for name in _SETS:
        for pattern in _PARTIALS:
            for path in (folder / name).glob(pattern):
                path.unlink()


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that is too small.

    Args:
        num_bytes: Size of all shards, including those that are already there.

    Raises:
        UserError: They do not fit.
    """
    free = shutil.disk_usage(folder).free
    for name in _SETS:
        for pattern in _OURS:
            free += sum(path.stat().st_size for path in (folder / name).glob(pattern))
    if num_bytes > free:
        raise UserError(
            f"{folder} has {format_bytes(free)} of free space, the shards need "
            f"{format_bytes(num_bytes)}",
            "choose a folder on a larger disk",
        )


def _holds_set(folder: Path) -> bool:
    return any((folder / name / INDEX_FILE).exists() for name in _SETS)
