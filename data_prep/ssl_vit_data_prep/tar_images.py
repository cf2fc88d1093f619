"""The samples of any tar in WebDataset's layout, found in one pass by the standard library.

Consecutive files that share a key are a sample. A member that is in no sample is returned as a
refusal with its reason. A hard link is a file with its own name and another file's bytes.
"""

import hashlib
import math
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Self, assert_never

from ssl_vit.data.shards import is_in_sample, split_key
from ssl_vit.files import readable
from ssl_vit.foreign import first_line
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.tar_labels import LabelRule, read_tar_label, stem_of

_BUFFER = 2**20
# Largest headers between two files: a long name, a few attributes. They are kept in memory.
_MOST_HEADER_BYTES = 4 * 2**20
_LONGEST_HEADER = 2**14  # bytes; a path has 4,096 at most
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_ARCHIVES = ("tar", "zip", "gz", "tgz", "zst", "xz", "bz2", "7z", "rar")
# A record has 32 bits for the distance from a link's header back to its bytes.
_FARTHEST_LINK = 2**31


class UnsortedError(tarfile.TarError):
    """A tar in which the files of a sample do not follow each other."""


@dataclass(frozen=True, slots=True)
class TarFile:
    """A file in a tar."""

    name: str
    ending: str
    """Ending by webdataset's rule: all after the base name's first dot, in lower case."""
    start: int
    """Offset of its header."""
    offset: int
    """Offset of its first byte; before ``start`` for a hard link."""
    length: int

    @property
    def lead(self) -> int:
        """Distance from the header to the first byte, as in a record."""
        return (self.offset - self.start) % 2**32

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive of other files."""
        return self.ending.rpartition(".")[2] in _ARCHIVES


@dataclass
class TarSample:
    """Consecutive files with one key."""

    key: str
    files: list[TarFile] = field(default_factory=list)
    label: str = ""
    """The label as written, by the given rule; empty for none."""
    no_label: str = ""
    """The text that means "no label", such as −1; empty if there is none."""
    json: bytes = b""
    """Content of its `.json`, if it is to be kept."""
    num_repeated: int = 0
    """Number of files with the name of an earlier one in the tar."""


class HashingReader:
    """A stream that hashes and counts what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0
        self.most_bytes: float = math.inf
        """Largest ``num_bytes`` that a sound file can have at this point."""

    def read(self, size: int = _BUFFER) -> bytes:
        """Read as from any stream.

        Raises:
            tarfile.ReadError: More than ``most_bytes`` were read.
        """
        if self.num_bytes > self.most_bytes:
            raise tarfile.ReadError(f"a damaged header before byte {self.num_bytes:,}")
        data = self._stream.read(size)
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    def at(self, offset: int, size: int) -> bytes:
        """Some bytes at any offset, not counted and not hashed."""
        place = self._stream.tell()
        self._stream.seek(offset)
        data = self._stream.read(size)
        self._stream.seek(place)
        return data

    def size(self) -> int:
        """Size of the whole file in bytes."""
        place = self._stream.tell()
        size = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(place)
        return size

    def finish(self) -> str:
        """Read to the end; returns the sha256 in hexadecimal."""
        while self.read():
            continue
        return self._hash.hexdigest()


def walk_samples(
    stream: HashingReader, rule: LabelRule | None = None, num_json: int = 0
) -> Iterator[TarSample | Refusal]:
    """The samples of a tar, in order, and refusals of members that are in none.

    Args:
        stream: An open file at its start.
        rule: Where labels are; by default in `.cls`.
        num_json: Number of samples whose `.json` is kept, whatever the rule is.

    Raises:
        tarfile.TarError: It is not a tar, is truncated, or is not sorted.
        LabelError: A label is a list, or too long.
    """
    walk = _Walk(stream, rule or LabelRule(), num_json)
    end = 0
    for member, end in _members(stream):
        if member.size < 0 or end > walk.size + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"truncated inside {readable(member.name)}")
        yield from walk.add(member)
    if walk.sample:
        yield walk.sample
    # tarfile takes a damaged header for the end, and ignores the data behind it.
    if stream.at(end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        last = f", after {walk.sample.key}" if walk.sample else ""
        raise tarfile.ReadError(f"truncated or damaged at byte {end:,}{last}")
    if rest := _bytes_behind(stream, end + 2 * tarfile.BLOCKSIZE, walk.size):
        reason = (
            f"{rest:,} bytes behind the end mark, probably tars that were joined by cat: unpack "
            "with  tar --ignore-zeros -xf,  join with  tar --concatenate"
        )
        yield Refusal("", "behind the end mark", reason)


class _Header(tarfile.TarInfo):
    """A header of bounded size: some versions of Python take minutes for long attributes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse as the standard library does, but refuse long headers."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and not 0 <= header.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _members(stream: HashingReader) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """(member, offset behind it) of all members of a tar.

    Raises:
        tarfile.TarError: It is not a tar, or a header is damaged.
    """
    source: Any = stream
    stream.most_bytes = _BUFFER + _MOST_HEADER_BYTES
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=_BUFFER, tarinfo=_Header) as tar:
            # Not `for member in tar`: it keeps every member, a kilobyte each.
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] - typeshed has no such attribute
                yield member, tar.offset
                stream.most_bytes = tar.offset + _BUFFER + _MOST_HEADER_BYTES
    except (tarfile.TarError, OSError, MemoryError):
        raise
    except Exception as error:
        # Damaged headers make tarfile raise many kinds, RecursionError among them.
        raise tarfile.ReadError(f"a damaged header: {first_line(error)}") from None
    finally:
        stream.most_bytes = math.inf


class _Walk:
    """The state of reading a tar up to a member."""

    def __init__(self, stream: HashingReader, rule: LabelRule, num_json: int) -> None:
        self.stream, self.rule, self.num_json = stream, rule, num_json
        self.size = stream.size()
        self.sample: TarSample | None = None
        # Name → (offset, length), for links and repeated names.
        self.places: dict[str, tuple[int, int]] = {}
        # Keys of finished samples.
        self.keys: set[str] = set()

    def add(self, member: tarfile.TarInfo) -> Iterator[TarSample | Refusal]:
        """Add one member; yields the sample that ends before it, or a refusal of the member."""
        name = readable(member.name)
        if member.isdir():
            return
        if refusal := refuse_member(name, member):
            yield refusal
            return
        offset, length = member.offset_data, member.size
        if member.islnk():
            target = self.places.get(_plain(readable(member.linkname)))
            if target is None:
                reason = f"a hard link to {readable(member.linkname)}, which is not before it"
                yield Refusal(name, "broken link", reason)
                return
            offset, length = target
            if member.offset - offset >= _FARTHEST_LINK:
                yield Refusal(name, "broken link", "a hard link across more than 2 GiB")
                return
        key, ending = split_key(name)
        is_repeated = _plain(name) in self.places
        self.places[_plain(name)] = (offset, length)
        if self.sample is None or self.sample.key != key:
            if self.sample:
                self.keys.add(self.sample.key)
                yield self.sample
            if key in self.keys and not is_repeated:
                raise UnsortedError(
                    f"not sorted: {name} does not follow the other files of its sample"
                )
            self.sample = TarSample(key)
        file = TarFile(name, ending, member.offset, offset, length)
        self.sample.files.append(file)
        self.sample.num_repeated += is_repeated
        if file.is_archive:
            yield Refusal(name, "inner archive", "an archive in the tar; its content is not read")
        yield from self._read(self.sample, file)

    def _read(self, sample: TarSample, file: TarFile) -> Iterator[Refusal]:
        """Read the label and fields of a sample from one of its files."""
        is_label = file.ending == self.rule.ending
        if file.ending == "json" and self.num_json and not is_label:
            self.num_json -= 1
            sample.json = self.stream.at(file.offset, min(file.length, _BUFFER))
        if not is_label:
            return
        if file.length > self.rule.longest:
            reason = f"{file.length:,} bytes, too long for a label"
            yield Refusal(file.name, "unreadable label", reason)
            return
        found = read_tar_label(file.name, self.stream.at(file.offset, file.length), self.rule)
        if isinstance(found, Refusal):
            yield found
        else:
            sample.label, sample.no_label = found.label, found.no_label


def label_in_tar(sample: TarSample, url: str, rule: LabelRule) -> str:
    """The text of a sample's label, to be numbered after all shards are read; empty for none."""
    match rule.source:
        case "cls" | "json":
            return sample.label
        case "folder":
            return folder_in_tar(sample)
        case "tar":
            return stem_of(url)
        case "none":
            return ""
    assert_never(rule.source)


def folder_in_tar(sample: TarSample) -> str:
    """Path of the folder of its files; empty for the top."""
    return _plain(sample.key).rpartition("/")[0]


def refuse_member(name: str, member: tarfile.TarInfo) -> Refusal | None:
    """The refusal of a member that is not a file of a sample; None if it may be one."""
    if member.issym():
        reason = f"a link to {readable(member.linkname)}; tar --dereference stores the file instead"
        return Refusal(name, "symbolic link", reason)
    if member.issparse():
        return Refusal(name, "special file", "a sparse file; make the tar without --sparse")
    if not (member.isreg() or member.islnk()):
        return Refusal(name, "special file", "a pipe or device")
    if is_in_sample(name):
        return None
    base = name.rpartition("/")[2]
    if base.startswith("."):
        return Refusal(name, "hidden", "its name begins with a dot")
    if "." not in base and not base.startswith("__") and "__MACOSX" not in name:
        return Refusal(name, "no image ending", "no ending")
    return Refusal(name, "metadata", "webdataset skips names such as __this__; macOS adds __MACOSX")


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _bytes_behind(stream: HashingReader, start: int, end: int) -> int:
    """Bytes from a place to the end of a file; 0 if all of them are zeros."""
    for offset in range(start, end, _BUFFER):
        if stream.at(offset, _BUFFER).strip(b"\0"):
            return end - start
    return 0
