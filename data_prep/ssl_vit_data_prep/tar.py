"""Writing tars: equal input gives equal bytes, and the hash is known without reading back."""

import hashlib
import os
import tarfile
from functools import cache
from io import FileIO

BLOCK = 512
"""Bytes of a tar block; headers and contents are padded to it."""
_RECORD_BYTES = 20 * BLOCK  # tar files end on a multiple of this
_LONGEST_NAME = 100  # bytes of a name that fit into a tar header
_WRITTEN_AT_ONCE = 2**20
_PIECES = 500  # the kernel takes up to 1,024 in a call


class HashedTar:
    """Appends members to a tar and hashes what it writes.

    Args:
        file: Open for writing without a buffer, at its start.
    """

    def __init__(self, file: FileIO) -> None:
        self._descriptor = file.fileno()
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._written = 0
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one file; returns the offset of its first byte."""
        self._append(header(name, len(data)))
        offset = self.num_bytes
        self._append(data)
        self._append(bytes(padded(len(data)) - len(data)))
        # Together and in place: a buffer would be one more copy of every image.
        if self.num_bytes - self._written >= _WRITTEN_AT_ONCE or len(self._pending) > _PIECES:
            self._write()
        return offset

    def finish(self) -> str:
        """Write the end mark; returns the sha256 of the whole file in hexadecimal."""
        self._append(bytes(2 * BLOCK))
        self._append(bytes(-self.num_bytes % _RECORD_BYTES))
        self._write()
        return self._hash.hexdigest()

    def _append(self, data: bytes) -> None:
        self._hash.update(data)
        self._pending.append(data)
        self.num_bytes += len(data)

    def _write(self) -> None:
        pending, self._pending = self._pending, []
        while pending:
            taken = os.writev(self._descriptor, pending)
            self._written += taken
            while pending and taken >= len(pending[0]):
                taken -= len(pending.pop(0))
            if pending:  # a signal or a full disk: writing the rest raises an error if it is full
                pending[0] = pending[0][taken:]


def header(name: str, num_bytes: int) -> bytes:
    """The tar header of a file.

    The bytes equal tarfile's, with its defaults for owner, mode and time (0, 0o644, 0). Made here
    for names that fit, because tarfile took a third of a pack's time.
    """
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        info = tarfile.TarInfo(name)
        info.size = num_bytes
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    block = bytearray(_template())
    block[: len(encoded)] = encoded
    block[124:135] = b"%011o" % num_bytes
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


@cache
def _template() -> bytes:
    """The header of an empty file without a name; its checksum is blank, as in the sum."""
    block = bytearray(tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT))
    block[148:156] = b" " * 8
    return bytes(block)


def member_bytes(name: str, num_bytes: int) -> int:
    """Bytes of a file in a tar, including its header."""
    length = len(name.encode())
    # GNU's long names: one more header, whose content is the name and a closing zero.
    header = BLOCK if length <= _LONGEST_NAME else 2 * BLOCK + padded(length + 1)
    return header + padded(num_bytes)


def padded(num_bytes: int) -> int:
    """The next multiple of a tar block."""
    return -(-num_bytes // BLOCK) * BLOCK
