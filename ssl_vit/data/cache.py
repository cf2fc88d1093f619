"""Remote shards on the local disk: one download for all processes of a machine, in bounded room.

The cache's file for a shard is named by the shard's sha256, appears there only when it is whole and
verified, and is never written to again. There is no server and no list: a process that needs a
shard takes the lock of its partial file, so one downloads while the others wait, and the kernel
frees the lock of a process that dies. To make room, what was used longest ago goes first, except
what somebody holds (a shared lock, see `Hold`).
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ssl_vit.data.fetch import ATTEMPTS, Report, fetch_shard, say
from ssl_vit.data.index_file import Shard
from ssl_vit.data.urls import check_allowed, is_local, local_path
from ssl_vit.errors import UserError
from ssl_vit.files import replacing

DEFAULT_BYTES = 64 * 2**30
# Seconds after which a process that waits for room or for another's download looks again.
_LOOK_AGAIN = 0.05


def default_folder() -> Path:
    """`$SSL_VIT_CACHE`, or `ssl-vit/` in the user's cache folder."""
    if named := os.environ.get("SSL_VIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ssl-vit"


class ShardCache:
    """Says where the bytes of a shard can be read, and gets them there.

    Args:
        folder: On a local disk; created when the first shard is fetched. None: the default one.
        num_bytes: Room that shards may take together.
        allow_shell_urls: Whether `pipe:` URLs may run.
        attempts: Tries for one download.
        report: Told of failed tries.
    """

    def __init__(
        self,
        folder: Path | None = None,
        num_bytes: int = DEFAULT_BYTES,
        allow_shell_urls: bool = False,
        attempts: int = ATTEMPTS,
        report: Report = say,
    ) -> None:
        self.folder = folder or default_folder()
        self.num_bytes, self.allow_shell_urls = num_bytes, allow_shell_urls
        self.attempts, self.report = attempts, report

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.folder / "shards"

    def path(self, shard: Shard) -> Path:
        """A local file with the shard's bytes; a remote one is fetched first, whatever room it
        takes: a data worker that waits for others to make room would stop the run.

        Raises:
            UserError: It cannot be had; names it.
        """
        if is_local(shard.url):
            return local_path(shard.url)
        place = self.place_of(shard)
        try:
            os.utime(place)  # used now, so not the first to go
        except FileNotFoundError:
            self.fetch(shard, waits=False)
        return place

    def place_of(self, shard: Shard) -> Path:
        """Where a remote shard lies once it is fetched."""
        return self.shards / f"{shard.sha256}.tar"

    def fetch(self, shard: Shard, waits: bool) -> None:
        """Bring a remote shard here, or wait while another process does.

        Args:
            waits: Until there is room without evicting what others hold; if not, the bound gives
                way.

        Raises:
            UserError: It cannot be had, or there is no room for it; names it.
        """
        check_allowed(shard.url, self.allow_shell_urls)
        if shard.num_bytes > self.num_bytes:
            raise UserError(
                f"shard {shard.url} has {shard.num_bytes:,} bytes, more than the whole cache, "
                f"engine.cache_bytes={self.num_bytes:,}",
                "give the cache more room, or make smaller shards with  ssl-vit shards reshard",
            )
        asked = time.time()
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            with self._locked_partial(shard) as partial:
                if self.place_of(shard).exists():
                    return
                self._raise_failure_since(asked, shard)
                while (excess := self._used() - self.num_bytes) > 0:
                    if self._evict(excess) or not waits:
                        break
                    time.sleep(_LOOK_AGAIN)
                self._download(shard, partial)
                partial.replace(self.place_of(shard))
        except OSError as error:
            raise UserError(
                f"cannot keep shard {shard.url} in {self.shards}: {error.strerror or error}",
                "give engine.cache_folder=FOLDER (or $SSL_VIT_CACHE) on a local disk with room, "
                "or a smaller engine.cache_bytes",
            ) from None

    def retire(self, shard: Shard) -> None:
        """This process has no more use for a shard: it goes first when room is needed."""
        with contextlib.suppress(OSError):
            os.utime(self.place_of(shard), (0, 0))

    def hold(self, shard: Shard) -> IO[bytes] | None:
        """Keep a fetched shard from being evicted until what is returned is closed.

        Returns:
            None where it is not here.
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
    def _locked_partial(self, shard: Shard) -> Iterator[Path]:
        """The shard's partial file, locked against everybody else; gone afterwards."""
        # What it will weigh is in its name, so that others can count it before it is written.
        path = self.shards / f"{shard.sha256}.{shard.num_bytes}.partial"
        while True:
            with path.open("ab") as file:
                # Asked again and again, and not waited for: the file may become the shard, which
                # somebody then holds for as long as it is in use.
                while not (locked := _try_lock(file)) and _is_same(file, path):
                    time.sleep(_LOOK_AGAIN)
                if not locked or not _is_same(file, path):
                    continue  # whoever had the lock before us renamed or removed it
                try:
                    yield path
                finally:
                    if _is_same(file, path):
                        path.unlink()
                return

    def _download(self, shard: Shard, partial: Path) -> None:
        """Fetch and verify; where the disk is smaller than the bound, evict and try once more."""
        failure = self.shards / f"{shard.sha256}.failure"
        try:
            try:
                fetch_shard(shard, partial, self.attempts, self.report)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._evict(shard.num_bytes):
                    raise
                fetch_shard(shard, partial, self.attempts, self.report)
        except UserError as error:
            # For those who wait for this download: they need not find out again.
            with contextlib.suppress(OSError), replacing(failure) as new:
                new.write_text(json.dumps([error.problem, error.remedy]))
            raise
        failure.unlink(missing_ok=True)

    def _raise_failure_since(self, asked: float, shard: Shard) -> None:
        failure = self.shards / f"{shard.sha256}.failure"
        try:
            if failure.stat().st_mtime < asked:
                return
            problem, remedy = json.loads(failure.read_text())
        except (OSError, ValueError):
            return
        raise UserError(problem, remedy)

    def _used(self) -> int:
        """Bytes of all shards, those that are being fetched counted whole."""
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
        """Remove what was used longest ago and nobody holds; whether so much was freed."""
        found: list[tuple[float, int, str]] = []
        for entry in os.scandir(self.shards):
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                if entry.name.endswith(".tar"):
                    found.append((state.st_mtime, state.st_size, entry.path))
                elif entry.name.endswith(".partial"):
                    # Of a process that was killed, if nobody has its lock: that one goes first.
                    found.append((-1.0, int(entry.name.split(".")[-2]), entry.path))
        freed = 0
        for _, size, path in sorted(found):
            if freed >= num_bytes:
                break
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if _try_lock(file):
                    os.unlink(path)
                    freed += size
        return freed >= num_bytes


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: IO[bytes], path: Path) -> bool:
    """Whether a path still means an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
