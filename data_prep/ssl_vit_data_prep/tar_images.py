"""The images of anyone's tar in WebDataset's layout, found by the standard library, in one pass.

Files that follow each other and share a key are a sample. Every image of a sample counts as one of
ours; its label comes from the sample's `.cls`, or from a field of its `.json`.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from ssl_vit.data.shards import split_key
from ssl_vit.files import readable

_BUFFER = 2**20
# A text longer than this is no label.
_LONGEST_LABEL = 1000


@dataclass(frozen=True)
class TarFile:
    """A file in a tar."""

    name: str
    ending: str
    """Of webdataset: all after the base name's first dot, in lower case."""
    start: int
    """Offset of its header."""
    offset: int
    """Offset of its first byte."""
    length: int


@dataclass
class TarSample:
    """Neighbouring files with one key."""

    key: str
    files: list[TarFile] = field(default_factory=list)
    label: str = ""
    """As it is written; empty for none."""


class HashingReader:
    """A stream that hashes and counts what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = _BUFFER) -> bytes:
        """As of any stream."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    def at(self, offset: int, size: int) -> bytes:
        """Some bytes anywhere, outside of the count and the hash."""
        place = self._stream.tell()
        self._stream.seek(offset)
        data = self._stream.read(size)
        self._stream.seek(place)
        return data

    def finish(self) -> str:
        """Read to the end; the sha256 in hexadecimal."""
        while self.read():
            continue
        return self._hash.hexdigest()


def walk_samples(stream: HashingReader, label_field: str = "") -> Iterator[TarSample]:
    """The samples of a tar, in their order.

    Args:
        stream: Of a file, at its start.
        label_field: Of a sample's `.json`; empty: labels are in `.cls` alone.

    Raises:
        tarfile.TarError: It is no tar, or one that breaks off.
    """
    sample: TarSample | None = None
    source: Any = stream
    with tarfile.open(fileobj=source, mode="r|", bufsize=_BUFFER) as tar:
        for member in tar:
            if not member.isreg():
                continue
            name = readable(member.name)
            key, ending = split_key(name)
            if sample is None or sample.key != key:
                if sample:
                    yield sample
                sample = TarSample(key)
            sample.files.append(
                TarFile(name, ending, member.offset, member.offset_data, member.size)
            )
            if ending == "cls" or (ending == "json" and label_field):
                content = tar.extractfile(member)
                text = content.read() if content else b""
                if label := _read_label(text, ending, label_field):
                    sample.label = label
        end = tar.offset
    if sample:
        yield sample
    # tarfile takes a damaged header for the end, and says nothing of what lies behind it.
    if stream.at(end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        last = f", after {sample.key}" if sample else ""
        raise tarfile.ReadError(f"it is broken off or damaged at byte {end:,}{last}")


def _read_label(text: bytes, ending: str, label_field: str) -> str:
    try:
        if ending == "cls":
            return text.decode().strip()[:_LONGEST_LABEL]
        value = json.loads(text).get(label_field)
    except (ValueError, AttributeError):
        return ""  # no text, or JSON of another shape
    return "" if value is None else str(value)[:_LONGEST_LABEL]
