"""Image folder → WebDataset tars plus index. Image bytes are copied untouched.

The index is written last. A pack that was killed has left its mark in the folder instead, and only
that mark allows the next one to replace what lies there. Refused files leave their shard a little
smaller; nothing else moves.
"""

import hashlib
import io
import json
import shutil
import tarfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ssl_vit.data.decode import FORMATS
from ssl_vit.data.shards import (
    INDEX_FILE,
    NO_LABEL,
    SAMPLE_RECORD,
    SAMPLES_FILE,
    Shard,
    write_index,
)
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit_data_prep.plan import BLOCK, PlannedSample, padded, plan_shards
from ssl_vit_data_prep.scan import find_images
from ssl_vit_data_prep.workers import run_tasks

REFUSED_FILE = "refused.jsonl"
UNFINISHED_FILE = ".unfinished-pack"
_OURS = (
    "shard-*.tar",
    ".shard-*.tar.partial-*",
    f".{INDEX_FILE}.partial-*",
    f".{SAMPLES_FILE}.partial-*",
    SAMPLES_FILE,
    REFUSED_FILE,
)
_RECORD_BYTES = 20 * BLOCK  # tar files end on a multiple of this
_LARGEST_IMAGE = 0x7FFFF000  # bytes that Linux gives in one `pread`, which is how samples are read


@dataclass(frozen=True)
class ShardTask:
    """All that a worker process needs to write one shard."""

    images: Path
    target: Path
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True)
class Refusal:
    """A file that is not packed."""

    path: str
    """Relative to the image folder."""
    reason: str


@dataclass(frozen=True)
class WrittenShard:
    """One shard as it came out."""

    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    refused: list[Refusal]


@dataclass(frozen=True)
class PackSummary:
    """What a pack made."""

    num_images: int
    num_shards: int
    num_bytes: int
    class_counts: dict[str, int]
    """Images of every class, in class order; empty where the folder has no classes."""
    num_refused: int
    seconds: float


def pack_images(
    images: Path,
    folder: Path,
    shard_bytes: int,
    workers: int,
    shuffle_seed: int,
    overwrite: bool,
) -> PackSummary:
    """Pack an image folder into a folder of shards.

    Args:
        images: Classes are its first-level sub-folders, unless images lie directly in it.
        folder: Created; must be new, empty or left by a killed pack.
        shard_bytes: Size that a tar does not exceed, unless a single sample does.
        workers: Processes; their number does not change a byte.
        shuffle_seed: Of the order of samples.
        overwrite: Replace a set of shards that is there.

    Raises:
        UserError: No images, none that can be read, or a target that may not or cannot be written.
    """
    start = time.perf_counter()
    _check_target(images, folder, overwrite)
    files = find_images(images)
    plan = plan_shards(files, shard_bytes, shuffle_seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, plan.num_bytes)
        (folder / UNFINISHED_FILE).touch()
        _remove_ours(folder)
        tasks = [
            ShardTask(images, folder / f"shard-{number:06d}.tar", samples)
            for number, samples in enumerate(plan.shards)
        ]
        sizes = [len(samples) for samples in plan.shards]
        written = run_tasks(write_shard, tasks, sizes, workers, "packing")
        refused = [refusal for each in written for refusal in each.refused]
        _write_refused(folder / REFUSED_FILE, refused)
        filled = [each for each in written if each.shard.num_samples]
        if not filled:
            raise UserError(
                f"none of the {len(files)} files in {images} is an image that can be read",
                f"see why in {folder / REFUSED_FILE}",
            )
        records = np.concatenate([each.records for each in filled])
        write_index(folder, [each.shard for each in filled], records, plan.classes)
        (folder / UNFINISHED_FILE).unlink()
    except OSError as error:
        raise UserError(
            f"cannot write shards into {folder}: {error.strerror or error}",
            "give a folder that can be written and has room",
        ) from None
    return PackSummary(
        num_images=len(records),
        num_shards=len(filled),
        num_bytes=sum(each.shard.num_bytes for each in filled),
        class_counts=_count_classes(records, plan.classes),
        num_refused=len(refused),
        seconds=time.perf_counter() - start,
    )


def _count_classes(records: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    labels = records["label"][records["label"] != NO_LABEL]
    counts = np.bincount(labels, minlength=len(classes))
    return {name: int(counts[number]) for number, name in enumerate(classes)}


def write_shard(task: ShardTask) -> WrittenShard:
    """Write one tar, labelled images each with their class; no file if every image is refused."""
    rows: list[tuple[int, int, int, int]] = []
    refused: list[Refusal] = []
    with replacing(task.target) as partial, partial.open("wb", buffering=2**20) as file:
        tar = HashedTar(file)
        for sample in task.samples:
            try:
                data = read_packable(task.images / sample.path)
            except ValueError as error:
                refused.append(Refusal(sample.path, str(error)))
                continue
            start = tar.num_bytes
            offset = tar.add(f"{sample.key}.{sample.ending}", data)
            rows.append((offset, len(data), offset - start, sample.label))
            if sample.label != NO_LABEL:
                tar.add(f"{sample.key}.cls", str(sample.label).encode())
        digest = tar.finish()
    if not rows:
        task.target.unlink()
    shard = Shard(task.target.name, len(rows), tar.num_bytes, digest)
    return WrittenShard(shard, np.array(rows, dtype=SAMPLE_RECORD), refused)


class HashedTar:
    """Appends members to a tar and hashes what it writes, so that no byte is read back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one file; returns the offset of its first byte."""
        # Owner, mode and time are tarfile's defaults (0, 0o644, 0): equal input gives equal bytes.
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(padded(len(data)) - len(data)))
        return offset

    def finish(self) -> str:
        """Write the end mark; returns the sha256 of the whole file in hexadecimal."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.num_bytes % _RECORD_BYTES))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)


def read_packable(path: Path) -> bytes:
    """The bytes of an image file whose header can be read; its pixels are not decoded.

    Raises:
        ValueError: Empty, too large, unreadable, or no image of a format that we take.
    """
    try:
        if path.stat().st_size > _LARGEST_IMAGE:
            raise ValueError("larger than 2 GiB")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if not data:
        raise ValueError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data), formats=FORMATS).close()
    except Image.UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        # Anything: Pillow's parsers raise whatever a broken header makes them trip over, and one
        # file must not end the packing of a million.
        raise ValueError(f"no readable image header: {error}") from None
    return data


def _check_target(images: Path, folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder", "choose another folder for the shards")
    if folder.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"the shard folder {folder} lies inside the image folder {images}",
            "choose a folder beside it",
        )
    if not folder.is_dir():
        return
    if (folder / INDEX_FILE).exists():
        if not overwrite:
            raise UserError(
                f"{folder} already holds a set of shards", "choose another folder, or --overwrite"
            )
    elif not (folder / UNFINISHED_FILE).exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds other files, such as {min(folder.iterdir()).name}",
            "choose a new or an empty folder",
        )


def _remove_ours(folder: Path) -> None:
    # The index goes first: without it, what is left of the old set is no set any more.
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for pattern in _OURS:
        for path in folder.glob(pattern):
            path.unlink()


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    free += sum(path.stat().st_size for pattern in _OURS for path in folder.glob(pattern))
    if num_bytes > free:
        raise UserError(
            f"{folder} has room for {free / 1e9:.1f} GB, the shards need {num_bytes / 1e9:.1f} GB",
            "choose a folder on a larger disk",
        )


def _write_refused(path: Path, refused: Sequence[Refusal]) -> None:
    """One line a refusal; no file where there is none."""
    if not refused:
        return
    with replacing(path) as partial:
        partial.write_text(
            "".join(
                json.dumps({"path": refusal.path, "reason": refusal.reason}) + "\n"
                for refusal in refused
            )
        )
