"""Which files of the cache were verified since a run began, shared by the processes of a machine so
that each file is hashed once.

A mark is a small file with a time and an inode. It is never trusted beyond the run, because bit rot
changes neither.
"""

import contextlib
import time
from pathlib import Path

from ssl_vit.files import replacing


class Marks:
    """The files that this process and others have verified.

    Args:
        folder: Folder of the marks; created with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # All ranks of a run, with their prefetchers and workers, have made or inherited this object
        # before the first of them verifies a shard.
        self.since = time.time()
        self._own: dict[str, int] = {}  # sha256 → inode, in case no mark can be written

    def set(self, sha256: str, file: Path) -> None:
        """Mark a file as verified."""
        with contextlib.suppress(OSError):  # without a mark the others hash it themselves
            inode = file.stat().st_ino
            self._own[sha256] = inode
            self.folder.mkdir(exist_ok=True)
            with replacing(self.folder / sha256) as new:
                new.write_text(f"{time.time()} {inode}")

    def has(self, sha256: str, file: Path) -> bool:
        """Whether a file was verified since this object was made."""
        try:
            inode = file.stat().st_ino
            if self._own.get(sha256) == inode:
                return True
            at, verified = (self.folder / sha256).read_text().split()
            return float(at) >= self.since and int(verified) == inode
        except (OSError, ValueError):
            return False

    def remove(self, sha256: str) -> None:
        """Remove the mark of a file that is gone."""
        (self.folder / sha256).unlink(missing_ok=True)
