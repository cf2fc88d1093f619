"""Which shards a user means by paths, patterns and URLs, and how an index calls them."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.data.urls import check_allowed, expand, is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit_data_prep.parts import unfinished_command
from ssl_vit_data_prep.refusals import Refusal

_COMPRESSED = (".gz", ".tgz", ".zst", ".xz", ".bz2")
_COMPRESSED_TARS = (*(f".tar{ending}" for ending in _COMPRESSED), ".tgz", ".tbz2", ".txz")


def list_shards(sources: Sequence[str], allow_shell_urls: bool) -> list[str]:
    """Every shard that the sources mean, in their order.

    Raises:
        UserError: One means none, or a shard that cannot be indexed.
    """
    urls: list[str] = []
    for source in sources:
        for location in expand(source):
            check_allowed(location, allow_shell_urls)
            urls += _list_local(location) if is_local(location) else [location]
    if compressed := [url for url in urls if url.partition("?")[0].endswith(_COMPRESSED)]:
        raise UserError(
            f"{compressed[0]} is compressed: a sample in it cannot be reached without what is "
            "before it",
            "unpack it first, for example with gunzip; JPEGs hardly shrink anyway",
        )
    if twice := [url for url, count in Counter(urls).items() if count > 1]:
        raise UserError(f"{twice[0]} is named twice", "name every shard once")
    return urls


def check_complete(urls: Sequence[str]) -> None:
    for folder in {local_path(url).parent for url in urls if is_local(url)}:
        if (command := unfinished_command(folder)) in ("pack", "reshard"):
            raise UserError(
                f"the shards in {folder} are not complete: the {command} that makes them has not "
                "ended",
                "run that command again; it continues where it stopped, and makes the index",
            )


def states_of(urls: Sequence[str]) -> list[tuple[str, int, int]]:
    """Each shard with size and time of its last change, where it is local."""
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
        raise UserError(f"there are no shards at {location}", "give tars, or a folder of them")
    return found


def list_compressed(sources: Sequence[str]) -> list[Refusal]:
    """Compressed tars in the folders that were named: they are left out."""
    reason = "unpack it first: a sample in it cannot be reached without what is before it"
    return [
        Refusal(path.name, "compressed", reason)
        for source in sources
        for location in expand(source)
        if is_local(location) and local_path(location).is_dir()
        for path in _compressed_in(local_path(location))
    ]


def _refuse_folder(folder: Path) -> None:
    """Say what a folder has instead of tars."""
    if compressed := _compressed_in(folder):
        tool = "unzstd" if compressed[0].name.endswith(".zst") else "gunzip"
        raise UserError(
            f"{folder} has only compressed tars, such as {compressed[0].name}: a sample in one "
            "cannot be reached without what is before it",
            f"unpack them first, for example with  {tool} {folder}/*{compressed[0].suffix}",
        )
    if below := sorted({path.parent for path in folder.glob("*/*.tar")}):
        raise UserError(
            f"there are no shards at {folder}, but in its folder {below[0].name}",
            f"give {below[0]}, or '{folder}/*/*.tar' for all of them",
        )


def _compressed_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_COMPRESSED_TARS))


def folder_of(urls: Sequence[str]) -> Path:
    folders = {local_path(url).parent.resolve() if is_local(url) else None for url in urls}
    folder = folders.pop()
    if folders or folder is None:
        raise UserError(
            "the shards do not lie in one local folder, where their index would go",
            "say where it goes:  --out INDEX",
        )
    return folder


def entry_of(url: str, folder: Path) -> str:
    """How an index in ``folder`` calls a shard: by name where it lies beside it, else by URL."""
    if not is_local(url):
        return url
    path = local_path(url).resolve()
    return path.name if path.parent == folder.resolve() else path.as_uri()
