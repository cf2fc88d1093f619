"""The index of a shard set: `index.json` and `samples.npy`, written once, opened in a moment.

`index.json` is webdataset's shard-list convention with more keys. `samples.npy` has one fixed-size
record per sample, of which only those in use are read: opening a hundred million samples is as fast
as opening ten. No torch here.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from ssl_vit.data.formats import is_html
from ssl_vit.data.urls import name_of, scheme_of
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.foreign import MIB, Document, checked, parse_json, read_bounded

INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.npy"
FORMAT = "ssl-vit-shards-2"
MOST_INDEX_BYTES = 256 * MIB
"""Largest size of an `index.json`; a million shards need about as much."""
MOST_CLASSES = 2**21
"""Most classes of a set: more are names of samples, and would not fit into an `index.json`."""
UNFINISHED_FOLDER = ".unfinished"
"""Exists in a set's folder as long as the command that makes the set has not finished."""

# offset, length: the image's bytes in its tar. lead: bytes from the image's own tar header to them
# (512, more where a long name needs an extended header; of a hard link, whose header comes after
# them, the negative number in two's complement). label: class number, -1 for none.
SAMPLE_RECORD = np.dtype([("offset", "<u8"), ("length", "<u4"), ("lead", "<u4"), ("label", "<i4")])
NO_LABEL = -1


@dataclass(frozen=True)
class Shard:
    """One tar of a set."""

    url: str
    """In an index: its name in the set's folder, or a URL. In an opened set: a path or a URL."""
    num_samples: int
    num_bytes: int
    sha256: str
    """Hash of the tar."""
    records_sha256: str
    """Hash of its records in `samples.npy`."""

    @property
    def name(self) -> str:
        """The file's name."""
        return name_of(self.url)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of pixels in [0, 1], with equal weight for each image."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_images: int
    """How many images were measured: an even sample of a large set."""


@dataclass(frozen=True)
class Index:
    """The content of an `index.json`."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    statistics: Statistics | None
    """None if the images were never decoded."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown; None if no image has them."""
    labels_from: str = "cls"
    """Where in the tars labels are: `cls`, `json:FIELD`, `folder`, `tar` or `none`."""
    groups: tuple[int, ...] = ()
    """(num_samples,) the group of each sample (a patient, a slide), by number; empty: not known."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)


def fingerprint(shards: Iterable[Shard]) -> str:
    """16 hex digits that change when any byte of any shard or of its records does."""
    lines = (f"{shard.num_samples} {shard.sha256} {shard.records_sha256}\n" for shard in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def describe_shard(url: str, num_bytes: int, sha256: str, records: np.ndarray) -> Shard:
    """The index's entry for a tar with these records."""
    return Shard(url, len(records), num_bytes, sha256, records_digest(records))


def records_digest(records: np.ndarray) -> str:
    """``Shard.records_sha256`` of (N,) ``SAMPLE_RECORD``."""
    return hashlib.sha256(records.astype(SAMPLE_RECORD, copy=False).tobytes()).hexdigest()


def write_index(folder: Path, index: Index, records: Sequence[np.ndarray]) -> None:
    """Write `samples.npy` and then `index.json`, whose presence means that the set is complete.

    Args:
        folder: The set's folder.
        index: Its shards are in the order of ``records``.
        records: (num_samples,) of ``SAMPLE_RECORD`` for every shard.
    """
    with replacing(folder / SAMPLES_FILE) as partial, partial.open("wb") as file:
        header = {"descr": SAMPLE_RECORD.descr, "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (index.num_samples,)})
        for part in records:
            file.write(part.astype(SAMPLE_RECORD, copy=False).tobytes())
    statistics = index.statistics
    values = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format": FORMAT,
        "num_samples": index.num_samples,
        "num_bytes": sum(shard.num_bytes for shard in index.shards),
        "fingerprint": fingerprint(index.shards),
        "classes": list(index.classes),
        "labels_from": index.labels_from,
        "statistics": statistics
        and {
            "mean": list(statistics.mean),
            "std": list(statistics.std),
            "num_images": statistics.num_images,
        },
        "values": index.values and asdict(index.values),
        "groups": ",".join(map(str, index.groups)),
        "shardlist": [
            {
                "url": shard.url,
                "nsamples": shard.num_samples,
                "filesize": shard.num_bytes,
                "sha256": shard.sha256,
                "records_sha256": shard.records_sha256,
            }
            for shard in index.shards
        ],
    }
    with replacing(folder / INDEX_FILE) as partial:
        text = json.dumps(values, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_index(folder: Path) -> Index:
    """The index in a set's folder.

    Raises:
        UserError: The folder or its index is missing, empty, damaged or not of this format.
    """
    path = folder / INDEX_FILE
    if not folder.is_dir():
        raise UserError(f"no shard folder at {folder}", f"ssl-vit shards pack IMAGES {folder}")
    if not path.is_file():
        if (folder / UNFINISHED_FOLDER).is_dir():
            raise UserError(
                f"the shards in {folder} are not complete: the command that makes them has not "
                "finished",
                "run that command again to continue",
            )
        if not any(folder.iterdir()):
            raise UserError(
                f"shard folder {folder} is empty", f"ssl-vit shards pack IMAGES {folder}"
            )
        if any(folder.glob("*.tar")):
            raise UserError(
                f"the shards in {folder} have no index ({INDEX_FILE})",
                f"ssl-vit shards index '{folder}/*.tar'  makes one",
            )
        parts = sorted(part.parent.name for part in folder.glob(f"*/{INDEX_FILE}"))
        raise UserError(
            f"{folder} is not a shard folder (it has no {INDEX_FILE})",
            f"did you mean {folder / parts[0]}?"
            if parts
            else "ssl-vit shards pack IMAGES SHARDS  makes one",
        )
    return parse_index(read_bounded(path, "make it readable", MOST_INDEX_BYTES), str(path))


def parse_index(content: bytes, source: str) -> Index:
    """The content of an `index.json`.

    Args:
        source: Its path or URL, for messages.

    Raises:
        UserError: It is damaged, or not of this format.
    """
    again = "make it again with  ssl-vit shards index"
    if is_html(content):
        raise UserError(
            f"{source} is an HTML page, not an index", "log in there, or give a direct URL"
        )
    values = parse_json(content, source, again)
    if values.get("format") != FORMAT:
        raise UserError(f"{source} does not have the format {FORMAT}", again)
    document = checked(_IndexDocument, values, source, again)
    index = Index(
        tuple(_shard(entry, source) for entry in document.shardlist),
        tuple(document.classes),
        document.statistics and document.statistics.as_statistics(),
        document.values and ValueRange(**document.values.model_dump()),
        document.labels_from,
        tuple(map(int, document.groups.split(","))) if document.groups else (),
    )
    if not index.num_samples:
        raise UserError(f"{source} lists no samples", "pack a folder that has images")
    if index.groups and len(index.groups) != index.num_samples:
        raise UserError(
            f"{source} has groups of {len(index.groups):,} samples, and lists "
            f"{index.num_samples:,}",
            again,
        )
    return index


SampleCount = Annotated[int, Field(ge=0, le=2**40)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # hashes become names in the cache
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class _ShardEntry(Document):
    url: Annotated[str, Field(min_length=1, max_length=4096)]
    nsamples: SampleCount
    filesize: Annotated[int, Field(ge=0, le=2**60)]
    sha256: Sha256
    records_sha256: Sha256


class _StatisticsEntry(Document):
    mean: Triple
    std: Triple
    num_images: SampleCount

    def as_statistics(self) -> Statistics:
        mean, std = ((red, green, blue) for red, green, blue in (self.mean, self.std))
        return Statistics(mean, std, self.num_images)


class _ValuesEntry(Document):
    low: float
    high: float
    no_data: float | None
    num_images: SampleCount

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        ValueRange(self.low, self.high)
        return self


class _IndexDocument(Document):
    shardlist: Annotated[list[_ShardEntry], Field(max_length=2**20)]
    classes: list[str]
    statistics: _StatisticsEntry | None
    values: _ValuesEntry | None = None
    """Missing in sets that were made before value ranges existed."""
    labels_from: str = "cls"
    groups: Annotated[str, Field(pattern=r"^(\d{1,12}(,\d{1,12})*)?$")] = ""
    """By commas: a list would have a line for each."""


def _shard(entry: _ShardEntry, source: str) -> Shard:
    # A shard set may come from a stranger: a name in its index must not lead out of its folder.
    is_path = not scheme_of(entry.url)
    if not entry.url.isprintable() or (is_path and Path(entry.url).name != entry.url):
        raise UserError(
            f"{source} lists {entry.url!r}, which is not in its folder",
            "pack the images again, or move the shard there",
        )
    return Shard(entry.url, entry.nsamples, entry.filesize, entry.sha256, entry.records_sha256)
