"""Shards from a user's paths, patterns and URLs, and their names in an index."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.data.urls import check_allowed, expand, is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit_data_prep.finished_shards import unfinished_command
from ssl_vit_data_prep.refusals import Refusal

_COMPRESSED = (".gz", ".tgz", ".zst", ".xz", ".bz2")
_COMPRESSED_TARS = (*(f".tar{ending}" for ending in _COMPRESSED), ".tgz", ".tbz2", ".txz")


def list_shards(sources: Sequence[str], allow_shell_urls: bool) -> list[str]:
    """All shards of the sources, in order.

    Raises:
        UserError: A source has no shards, or one that cannot be indexed.
    """
    urls: list[str] = []
    for source in sources:
        for location in expand(source):
            check_allowed(location, allow_shell_urls)
            urls += _list_local(location) if is_local(location) else [location]
    if compressed := [url for url in urls if url.partition("?")[0].endswith(_COMPRESSED)]:
        raise UserError(
            f"{compressed[0]} is compressed: its samples cannot be accessed at random",
            "decompress it first, for example with gunzip; JPEGs hardly compress anyway",
        )
    if twice := [url for url, count in Counter(urls).items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice", "give every shard once")
    return urls


def check_complete(urls: Sequence[str]) -> None:
    """Refuse the shards of a command that has not finished.

    Raises:
        UserError: There are some.
    """
    for folder in {local_path(url).parent for url in urls if is_local(url)}:
        if (command := unfinished_command(folder)) in ("pack", "reshard"):
            raise UserError(
                f"the shards in {folder} are not complete: the {command} that makes them has not "
                "finished",
                "run that command again; it resumes where it stopped, and makes the index",
            )


def states_of(urls: Sequence[str]) -> list[tuple[str, int, int]]:
    """Each shard with its size and the time of its last change; zeros for a remote one."""
    found = []
    for url in urls:
        try:
            state = local_path(url).stat() if is_local(url) else None
        except OSError as error:
            raise UserError(
                f"cannot read shard {url}: {error.strerror}", "remove it, or make it readable"
            ) from None
        found.append((url, state.st_size, state.st_mtime_ns) if state else (url, 0, 0))
    return found


def _list_local(location: str) -> list[str]:
    path = local_path(location)
    if path.is_dir():
        found = sorted(str(tar) for tar in path.glob("*.tar"))
    elif glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path)))
    else:
        found = [str(path)] if path.is_file() else []
    if not found and path.is_dir():
        _refuse_folder(path)
    if not found:
        raise UserError(f"no shards at {location}", "give tars, or a folder of them")
    return found


def list_compressed(sources: Sequence[str]) -> list[Refusal]:
    """Refusals of the compressed tars in the given folders."""
    reason = "decompress it first: its samples cannot be accessed at random"
    return [
        Refusal(path.name, "compressed", reason)
        for source in sources
        for location in expand(source)
        if is_local(location) and local_path(location).is_dir()
        for path in _compressed_in(local_path(location))
    ]


def _refuse_folder(folder: Path) -> None:
    """Raise an error that names what a folder has instead of tars."""
    if compressed := _compressed_in(folder):
        tool = "unzstd" if compressed[0].name.endswith(".zst") else "gunzip"
        raise UserError(
            f"{folder} has only compressed tars, such as {compressed[0].name}: their samples "
            "cannot be accessed at random",
            f"decompress them first, for example with  {tool} {folder}/*{compressed[0].suffix}",
        )
    if below := sorted({path.parent for path in folder.glob("*/*.tar")}):
        raise UserError(
            f"no shards at {folder}, but in its sub-folder {below[0].name}",
            f"give {below[0]}, or '{folder}/*/*.tar' for all of them",
        )


def _compressed_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_COMPRESSED_TARS))


def folder_of(urls: Sequence[str]) -> Path:
    """The local folder of all shards.

    Raises:
        UserError: The folder does not exist.
    """
    folders = {local_path(url).parent.resolve() if is_local(url) else None for url in urls}
    folder = folders.pop()
    if folders or folder is None:
        raise UserError(
            "the shards are not in one local folder, where their index would be written",
            "add  --out INDEX",
        )
    return folder


def entry_of(url: str, folder: Path) -> str:
    """The ``url`` of a shard in an index: its name if it is beside the index, otherwise its URL."""
    if not is_local(url):
        return url
    path = local_path(url).resolve()
    return path.name if path.parent == folder.resolve() else path.as_uri()
