"""Remote shards on the local disk: one download for all processes of a machine, in bounded space.

The cache's file for a shard is named by the shard's sha256, appears there only when it is complete
and verified, and is never written to again. A copy that an earlier run left is hashed once more
before its first use in a run, because data on disks can decay. There is no server and no list: a
process that needs a shard takes its lock, so one downloads or hashes while the others wait, and the
kernel frees the lock of a process that dies. Eviction removes the least recently used shard first,
except those that a process holds (`ShardCache.hold`, a shared lock).
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from ssl_vit.data.fetch import ATTEMPTS, Report, fetch_shard, say
from ssl_vit.data.index_file import Shard
from ssl_vit.data.marks import Marks
from ssl_vit.data.urls import check_allowed, is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.units import parse_bytes

_READER_PATIENCE = 5.0
# Seconds after which a process that waits for space or for another's download checks again.
_LOOK_AGAIN = 0.05
# How often the folder may be removed while a shard is fetched into it.
_REMOVALS = 3


def default_folder() -> Path:
    """`$SSL_VIT_CACHE`, or `ssl-vit/` in the user's cache folder."""
    if named := os.environ.get("SSL_VIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ssl-vit"


def default_bytes() -> int:
    """`$SSL_VIT_CACHE_BYTES`, such as `200GB`, or 64 GiB."""
    return parse_bytes(os.environ.get("SSL_VIT_CACHE_BYTES", "64GiB"), "$SSL_VIT_CACHE_BYTES=")


class ShardCache:
    """A local file with the bytes of any shard, fetched when it is first needed.

    Args:
        folder: On a local disk; created when the first shard is fetched. None: the default one.
        num_bytes: Space that all shards may take together; None: the default.
        allow_shell_urls: Whether `pipe:` URLs may run.
        attempts: Tries for one download.
        report: Called with a line about each failed try.
    """

    def __init__(
        self,
        folder: Path | None = None,
        num_bytes: int | None = None,
        allow_shell_urls: bool = False,
        attempts: int = ATTEMPTS,
        report: Report = say,
    ) -> None:
        self.folder = folder or default_folder()
        self.num_bytes = default_bytes() if num_bytes is None else num_bytes
        self.allow_shell_urls = allow_shell_urls
        self.attempts, self.report = attempts, report
        self._marks = Marks(self.folder / "verified")

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.folder / "shards"

    @property
    def indexes(self) -> Path:
        """Folder of the copies of remote indexes."""
        return self.folder / "indexes"

    def path(self, shard: Shard) -> Path:
        """A local file with the shard's bytes; a remote shard is fetched first, and a cached one is
        verified on its first use in a run.

        If other processes hold all the space for more than a few seconds, the bound is exceeded: a
        data worker that waits forever would stop the run.

        Raises:
            UserError: It cannot be fetched; names it.
        """
        if is_local(shard.url):
            return local_path(shard.url)
        if not (self._has(shard) and self._is_verified(shard)):
            self.fetch(shard, _READER_PATIENCE)
        return self.place_of(shard)

    def place_of(self, shard: Shard) -> Path:
        """The path of a remote shard once it is fetched."""
        return self.shards / f"{shard.sha256}.tar"

    def fetch(self, shard: Shard, patience: float = math.inf) -> None:
        """Fetch a remote shard and verify it, or wait while another process does.

        Args:
            patience: Seconds to wait for space that others hold; after that the bound is exceeded.

        Raises:
            UserError: It cannot be fetched, or there is no space for it; names it.
        """
        check_allowed(shard.url, self.allow_shell_urls)
        if shard.num_bytes > self.num_bytes:
            raise UserError(
                f"shard {shard.url} has {shard.num_bytes:,} bytes, more than the whole cache, "
                f"{self.num_bytes:,}",
                "enlarge the cache (engine.cache_bytes=SIZE in training, else "
                "$SSL_VIT_CACHE_BYTES), or make smaller shards with  ssl-vit shards reshard",
            )
        requested, removals = time.time(), 0
        try:
            while True:
                try:
                    self.shards.mkdir(parents=True, exist_ok=True)
                    if self._fetch_if_room(shard, requested, time.time() - requested < patience):
                        return
                except FileNotFoundError:
                    removals += 1
                    if removals > _REMOVALS:
                        raise
                # Without the lock: a reader that needs this very shard now must get it.
                time.sleep(_LOOK_AGAIN)
        except OSError as error:
            raise UserError(
                f"cannot keep shard {shard.url} in {self.shards}: {error.strerror or error}",
                "set engine.cache_folder=FOLDER (or $SSL_VIT_CACHE) to a local disk with free "
                "space, or lower engine.cache_bytes",
            ) from None

    def _fetch_if_room(self, shard: Shard, requested: float, waits: bool) -> bool:
        """Whether the shard is here now; it is not if a fetch that may wait found no space."""
        with self._only_one(shard.sha256):
            if self._has(shard) and self._verify(shard):
                return True
            self._raise_failure_since(requested, shard)
            partial = self._reserve(shard, waits)
            if partial is None:
                return False
            try:
                self._download(shard, partial)
                with partial.open("rb") as whole:
                    os.fsync(whole.fileno())  # so that a crash leaves no name without its bytes
                partial.replace(self.place_of(shard))
                self._marks.set(shard.sha256, self.place_of(shard))
            finally:
                partial.unlink(missing_ok=True)
            return True

    def _has(self, shard: Shard) -> bool:
        """Whether it is here; a file that a crash of the machine cut short is not."""
        place = self.place_of(shard)
        with contextlib.suppress(FileNotFoundError):
            os.utime(place)  # used now, so not the first to be evicted
            return place.stat().st_size == shard.num_bytes
        return False

    def _verify(self, shard: Shard) -> bool:
        """Whether the cached shard has the right bytes; if not, it is removed, and a line reports
        that it will be fetched again.
        """
        if self._is_verified(shard):
            return True
        held = self.hold(shard)
        if held is None:
            return False
        with held:
            try:
                found = hashlib.file_digest(held, "sha256").hexdigest()
                problem = "" if found == shard.sha256 else "sha256 differs"
            except OSError as error:
                problem = error.strerror or str(error)
        if not problem:
            self._marks.set(shard.sha256, self.place_of(shard))
            return True
        self.report(f"{shard.url}: its copy in the cache is damaged ({problem}); fetching it again")
        self.remove(shard)
        return False

    def _is_verified(self, shard: Shard) -> bool:
        return self._marks.has(shard.sha256, self.place_of(shard))

    def remove(self, shard: Shard) -> None:
        """Remove the damaged copy of a remote shard."""
        self.place_of(shard).unlink(missing_ok=True)
        self._marks.remove(shard.sha256)

    def retire(self, shard: Shard) -> None:
        """Mark a shard that this process no longer needs as the first to be evicted."""
        with contextlib.suppress(OSError):
            os.utime(self.place_of(shard), (0, 0))

    def hold(self, shard: Shard) -> BufferedReader | None:
        """Keep a fetched shard from being evicted until the returned file is closed.

        Returns:
            None if it is not here.
        """
        try:
            file = self.place_of(shard).open("rb")
        except OSError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink == 0:  # evicted before we had the lock
            file.close()
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())  # another process may have retired it
        return file

    @contextlib.contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        """A block in which at most one process of the machine is; a process that dies leaves it."""
        path = self.shards / f"{name}.lock"
        while True:
            with path.open("w") as file:
                while not (locked := _try_lock(file)) and _is_same(file, path):
                    time.sleep(_LOOK_AGAIN)
                if not locked or not _is_same(file, path):
                    continue  # the last owner of the lock has removed the file
                try:
                    yield
                finally:
                    if _is_same(file, path):  # else the cache was removed meanwhile
                        path.unlink(missing_ok=True)
                return

    def _reserve(self, shard: Shard, waits: bool) -> Path | None:
        """The file to write to, with space for it; None if the fetch has to wait."""
        # Its final size is in its name, so that others can count it before it is written.
        partial = self.shards / f"{shard.sha256}.{shard.num_bytes}.partial"
        # A killed process left it, since we have the lock; it would be counted as well.
        partial.unlink(missing_ok=True)
        with self._only_one("room"):
            excess = self._used() + shard.num_bytes - self.num_bytes
            if excess > 0 and not self._evict(excess) and waits:
                return None
            partial.touch()
        return partial

    def _download(self, shard: Shard, partial: Path) -> None:
        """Fetch and verify; if the disk is smaller than the bound, evict and try once more."""
        failure = self.shards / f"{shard.sha256}.failure"
        try:
            try:
                fetch_shard(shard, partial, self.attempts, self.report)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._evict(shard.num_bytes):
                    raise
                fetch_shard(shard, partial, self.attempts, self.report)
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError) and str(cause.filename) == str(partial):
                raise cause from None  # not the server's: the cache was removed
            # For the processes that wait for this download.
            with contextlib.suppress(OSError), replacing(failure) as new:
                new.write_text(json.dumps([error.problem, error.remedy]))
            raise
        failure.unlink(missing_ok=True)

    def _raise_failure_since(self, requested: float, shard: Shard) -> None:
        failure = self.shards / f"{shard.sha256}.failure"
        try:
            if failure.stat().st_mtime < requested:
                return
            problem, remedy = json.loads(failure.read_text())
        except (OSError, ValueError):
            return
        raise UserError(problem, remedy)

    def _used(self) -> int:
        """Bytes of all shards; those being fetched count with their final size."""
        used = 0
        for entry in os.scandir(self.shards):
            _, _, ending = entry.name.rpartition(".")
            if ending == "partial":
                used += int(entry.name.split(".")[-2])
            elif ending == "tar":
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat().st_size
        return used

    def _evict(self, num_bytes: int) -> bool:
        """Remove the least recently used shards that no process holds; whether ``num_bytes`` were
        freed.
        """
        found: list[tuple[float, int, Path]] = []
        for path in self.shards.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                if path.suffix == ".tar":
                    found.append((state.st_mtime, state.st_size, path))
                elif path.suffix == ".partial":
                    # If no process has its lock, a killed one left it: the first to go.
                    found.append((-1.0, int(path.stem.split(".")[1]), path))
        freed = 0
        for _, size, path in sorted(found):
            if freed >= num_bytes:
                break
            lock = path if path.suffix == ".tar" else path.with_name(f"{path.name[:64]}.lock")
            with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
                # Still the same file: otherwise it is the lock of a later download.
                if _try_lock(file) and _is_same(file, lock) and path.exists():
                    path.unlink()
                    self._marks.remove(path.name[:64])
                    freed += size
        return freed >= num_bytes


def _try_lock(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: IO[Any], path: Path) -> bool:
    """Whether a path still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
