"""A shard set: WebDataset tars, and an index from which any sample is one `pread` away.

The folder holds `index.json` (webdataset's shard-list convention with more keys) and `samples.npy`,
one fixed-size record a sample, memory-mapped: opening a hundred million samples costs what opening
ten costs. No torch here: the plan and the checks read an index before anything slow is imported.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vit.errors import UserError
from ssl_vit.files import replacing

INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.npy"
FORMAT = "ssl-vit-shards-1"

# offset, length: the image's bytes in its tar. lead: bytes from the image's own tar header to them
# (512, more where a long name needs an extended header). label: class number, -1 for none.
SAMPLE_RECORD = np.dtype([("offset", "<u8"), ("length", "<u4"), ("lead", "<u4"), ("label", "<i4")])
NO_LABEL = -1


@dataclass(frozen=True)
class Shard:
    """One tar of a set."""

    name: str
    """File name, relative to the set's folder."""
    num_samples: int
    num_bytes: int
    sha256: str


class ShardSet:
    """A folder of shards, opened through its index.

    Sample numbers run from 0 to ``num_samples`` − 1 in shard order and never change.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], classes: Sequence[str]) -> None:
        self.folder = folder
        self.shards = tuple(shards)
        self.classes = tuple(classes)
        # (S + 1,) sample number at which each shard starts; the last entry is the total.
        self.starts = np.concatenate(
            [[0], np.cumsum([shard.num_samples for shard in self.shards], dtype=np.int64)]
        ).astype(np.int64)
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    @classmethod
    def open(cls, folder: Path | str) -> "ShardSet":
        """Open a set through its index.

        Raises:
            UserError: The folder, its index or a shard is missing, empty or not of this format.
        """
        folder = Path(folder)
        index = _read_index(folder)
        try:
            shards = [
                Shard(entry["url"], entry["nsamples"], entry["filesize"], entry["sha256"])
                for entry in index["shardlist"]
            ]
            found = cls(folder, shards, index["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / INDEX_FILE} is incomplete: {error!r}", "pack the images again"
            ) from None
        # A shard set may come from a stranger: its index must not lead out of its folder.
        if strays := [shard.name for shard in shards if Path(shard.name).name != shard.name]:
            raise UserError(
                f"{folder / INDEX_FILE} names {strays[0]}, which is not in its folder",
                "pack the images again, or move the shard there",
            )
        for shard in found.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.num_bytes:
                state = (
                    "is missing" if not path.is_file() else "has another size than its index says"
                )
                raise UserError(f"shard {path} {state}", f"pack the images again into {folder}")
        if not found.num_samples:
            raise UserError(f"{folder} holds no samples", "pack a folder that has images")
        _ = found.records  # looked at now, so that no data worker is the first to find it damaged
        return found

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.starts[-1])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when any byte of any shard does."""
        text = "\n".join(f"{shard.num_samples} {shard.sha256}" for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def records(self) -> np.ndarray:
        """(num_samples,) of ``SAMPLE_RECORD``, memory-mapped."""
        path = self.folder / SAMPLES_FILE
        try:
            records = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {path}: {error}", f"pack the images again into {self.folder}"
            ) from None
        if records.dtype != SAMPLE_RECORD or len(records) != self.num_samples:
            raise UserError(
                f"{path} does not fit its {INDEX_FILE}", f"pack the images again into {self.folder}"
            )
        return records

    @property
    def labels(self) -> np.ndarray:
        """(num_samples,) int32 class numbers, −1 where a sample has none."""
        return np.asarray(self.records["label"])

    def shard_of(self, number: int) -> int:
        """Which shard holds this sample."""
        return int(np.searchsorted(self.starts, number, side="right")) - 1

    def read(self, number: int) -> bytes:
        """The image file's bytes of one sample, by a single `pread`."""
        record = self.records[number]
        length = int(record["length"])
        data = os.pread(self._descriptor(self.shard_of(number)), length, int(record["offset"]))
        if len(data) != length:
            shard = self.shards[self.shard_of(number)].name
            raise OSError(f"shard {shard} ends inside sample {number}")
        return data

    def key(self, number: int) -> str:
        """The sample's WebDataset key (its path in the image folder without the ending), read from
        the tar.
        """
        record = self.records[number]
        header = int(record["offset"]) - int(record["lead"])
        with (self.folder / self.shards[self.shard_of(number)].name).open("rb") as file:
            file.seek(header)
            with tarfile.open(fileobj=file, mode="r|") as tar:
                member = tar.next()
        assert member is not None
        return split_key(member.name)[0]

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():
            # A forked data worker has its own numbers; what it inherited stays open in the parent.
            self._descriptors, self._owner = {}, os.getpid()
        if shard not in self._descriptors:
            if len(self._descriptors) >= 256:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self.folder / self.shards[shard].name
            self._descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "records"}
        return state | {"_descriptors": {}, "_owner": -1}


def split_key(member_name: str) -> tuple[str, str]:
    """(key, ending) of a tar member by webdataset's rule: the ending begins at the base name's
    first dot.
    """
    folder, slash, base = member_name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def write_index(
    folder: Path, shards: Sequence[Shard], records: np.ndarray, classes: Sequence[str]
) -> None:
    """Write `samples.npy` and then `index.json`, whose presence says that the set is complete."""
    with replacing(folder / SAMPLES_FILE) as partial, partial.open("wb") as file:
        np.save(file, records.astype(SAMPLE_RECORD, copy=False))
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format": FORMAT,
        "num_samples": len(records),
        "classes": list(classes),
        "shardlist": [
            {
                "url": shard.name,
                "nsamples": shard.num_samples,
                "filesize": shard.num_bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
    }
    with replacing(folder / INDEX_FILE) as partial:
        text = json.dumps(index, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    if not folder.is_dir():
        raise UserError(f"no shard folder at {folder}", f"ssl-vit shards pack IMAGES {folder}")
    if not path.is_file():
        if any(folder.iterdir()):
            raise UserError(
                f"{folder} is no shard folder (it has no {INDEX_FILE})",
                "ssl-vit shards pack IMAGES SHARDS  makes one",
            )
        raise UserError(f"shard folder {folder} is empty", f"ssl-vit shards pack IMAGES {folder}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "pack the images again") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path} is not of the format {FORMAT}", "pack the images again")
    return index
