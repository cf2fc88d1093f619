"""Opening shard sets by path or URL.

A source is a folder with an index, local or remote, or shards of such a folder by name, with
braces: `SHARDS`, `https://host/set/`, `https://host/set/shard-{000000..000007}.tar`. A remote index
is copied into the cache, under the hash of its content.
"""

import fcntl
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.fetch import FIRST_ATTEMPTS, fetch_bytes, fetch_file, try_often
from ssl_vit.data.index_file import (
    INDEX_FILE,
    SAMPLE_RECORD,
    SAMPLES_FILE,
    Index,
    Shard,
    parse_index,
    read_index,
    records_digest,
)
from ssl_vit.data.records import SMALL, Records
from ssl_vit.data.shards import Part, ShardSet
from ssl_vit.data.urls import check_allowed, expand, is_local, local_path, scheme_of, split_base
from ssl_vit.errors import UserError
from ssl_vit.files import replacing

_MOST_HEADER = 2**16  # bytes, of a `samples.npy`


def open_shards(
    sources: str | Path | Sequence[str],
    cache: ShardCache | None = None,
    verifies_records: bool = True,
) -> ShardSet:
    """Open one source, or several as one set with the shards of all.

    Args:
        sources: Folders or names of shards, see the docstring of this module.
        cache: Where remote shards and indexes are kept; None: the default one.
        verifies_records: Refuse records other than those the index describes.

    Raises:
        UserError: A source, its index or a local shard is missing, empty or damaged.
    """
    cache = cache or ShardCache()
    listed = [str(sources)] if isinstance(sources, str | Path) else list(sources)
    opened = [_open(source, cache) for source in listed]
    classes = {part_classes for _, _, part_classes in opened}
    parts = [part for part, _, _ in opened]
    shards = [shard for _, part_shards, _ in opened for shard in part_shards]
    # Labels are meaningful only if the sets have the same class names.
    agreed = classes.pop() if len(classes) == 1 else ()
    found = ShardSet(parts, shards, agreed, cache, verifies_records)
    found.check_records()
    return found


def _open(source: str, cache: ShardCache) -> tuple[Part, list[Shard], tuple[str, ...]]:
    base, names = _split(source)
    if is_local(base):
        folder = local_path(base)
        index = read_index(folder)
    else:
        folder, index = _fetch_index(base, source, cache)
    firsts = np.cumsum([0, *(shard.num_samples for shard in index.shards)])
    chosen = _choose(index, names, base, source)
    shards = [_located(index.shards[place], base, folder, source, cache) for place in chosen]
    places = tuple((int(firsts[place]), index.shards[place].num_samples) for place in chosen)
    part = Part(source, folder, index.num_samples, places, index.values, index.groups)
    return part, shards, index.classes


def _split(source: str) -> tuple[str, list[str]]:
    """(folder or its URL, names of the selected shards; empty for all)."""
    if scheme_of(source) == "pipe":
        raise UserError(
            f"{source} is a command, and samples are found through an index",
            f"ssl-vit shards index '{source}' --out INDEX --allow-shell-urls,  "
            "then data.shards=INDEX",
        )
    is_folder = is_local(source) and local_path(source).is_dir()
    if not is_folder and not source.endswith("/") and source.partition("?")[0].endswith(".tar"):
        split = [split_base(location) for location in expand(source)]
        bases = {base for base, _ in split}
        if len(bases) > 1:
            raise UserError(
                f"{source} names shards in {len(bases)} folders",
                "give them as a list:  data.shards=[A,B]",
            )
        return bases.pop() or ".", [name for _, name in split]
    return source if is_local(source) or source.endswith("/") else f"{source}/", []


def _choose(index: Index, names: Sequence[str], base: str, source: str) -> list[int]:
    """Places of the selected shards in the index, in its order."""
    if not names:
        return list(range(len(index.shards)))
    by_name = {shard.name: place for place, shard in enumerate(index.shards)}
    wanted = [name.partition("?")[0] for name in names]
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise UserError(
            f"{missing[0]} of {source} is not in the index of {base}",
            f"it has {index.shards[0].name} … {index.shards[-1].name}",
        )
    return sorted({by_name[name] for name in wanted})


def _located(shard: Shard, base: str, folder: Path, source: str, cache: ShardCache) -> Shard:
    """The shard with a location that can be opened; checks that a local one exists."""
    scheme = scheme_of(shard.url)
    if scheme == "" and not is_local(base):
        url = f"{base}{shard.url}"
    elif scheme == "":
        url = str(folder / shard.url)
    elif scheme == "file" and not is_local(base):
        raise UserError(
            f"the remote index of {base} refers to the local file {shard.url}",
            "copy that index here if you trust it",
        )
    else:
        url = shard.url
    check_allowed(url, cache.allow_shell_urls)
    if is_local(url):
        path = local_path(url)
        url = str(path)
        try:
            size = path.stat().st_size
        except OSError:
            raise UserError(
                f"shard {path} is missing", f"restore it, or pack the images of {source} again"
            ) from None
        if size != shard.num_bytes:
            raise UserError(
                f"shard {path} does not have the size in its index "
                f"({size:,} bytes, not {shard.num_bytes:,})",
                f"restore it, or pack the images of {source} again",
            )
    return Shard(url, shard.num_samples, shard.num_bytes, shard.sha256, shard.records_sha256)


def _fetch_index(base: str, source: str, cache: ShardCache) -> tuple[Path, Index]:
    """A copy of a remote index in the cache, and its content."""
    url = f"{base}{INDEX_FILE}"
    try:
        content = fetch_bytes(url, min(cache.attempts, FIRST_ATTEMPTS), cache.report)
    except FileNotFoundError:
        raise UserError(
            f"there is no {INDEX_FILE} at {base}",
            f"ssl-vit shards index '{source}' --out INDEX  makes one here; then data.shards=INDEX",
        ) from None
    index = parse_index(content, url)
    folder = cache.indexes / hashlib.sha256(content).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one download for all processes of the machine
            if not _is_kept(folder, content, index, cache):
                _fetch_records(f"{base}{SAMPLES_FILE}", folder / SAMPLES_FILE, index, cache)
                with replacing(folder / INDEX_FILE) as partial:
                    partial.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot keep the index of {base} in {folder}: {error.strerror or error}",
            "set $SSL_VIT_CACHE to a folder on a local disk with free space",
        ) from None
    return folder, index


def _is_kept(folder: Path, content: bytes, index: Index, cache: ShardCache) -> bool:
    """Whether the cache has a usable copy; reports one that is damaged."""
    if not (folder / INDEX_FILE).exists():
        return False
    try:
        if (folder / INDEX_FILE).read_bytes() != content:
            raise OSError(f"its {INDEX_FILE} has changed")
        if index.num_samples <= SMALL:  # records of a larger set are compared shard by shard later
            _compare_records(folder / SAMPLES_FILE, index)
    except OSError as error:
        cache.report(f"{folder}: this copy of an index is damaged ({error}); fetching it again")
        return False
    return True


def _fetch_records(url: str, target: Path, index: Index, cache: ShardCache) -> None:
    most = _MOST_HEADER + index.num_samples * SAMPLE_RECORD.itemsize
    with replacing(target) as partial:

        def fetch_and_compare() -> None:
            fetch_file(url, partial, most)
            _compare_records(partial, index)

        try_often(url, fetch_and_compare, cache.attempts, cache.report)


def _compare_records(file: Path, index: Index) -> None:
    first = 0
    try:
        records = Records(file, index.num_samples)
        for shard in index.shards:
            if records_digest(records.some(first, shard.num_samples)) != shard.records_sha256:
                raise OSError(f"its records of {shard.name} do not match {INDEX_FILE}")
            first += shard.num_samples
    except UserError as error:
        raise OSError(error.problem) from None  # the next try may succeed
