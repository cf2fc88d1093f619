"""Reading a set of shards again, end to end: are bytes, index and images what they should be?"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_vit.data.decode import decode_image
from ssl_vit.data.shards import NO_LABEL, Shard, ShardSet, split_key
from ssl_vit_data_prep.workers import run_tasks


@dataclass(frozen=True)
class CheckTask:
    """One shard, and what the index says of it."""

    folder: Path
    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    num_classes: int
    decode: bool


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where."""

    shard: str
    key: str
    """Empty where the fault is the whole shard's."""
    problem: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.problem) if part)


@dataclass(frozen=True)
class TarImage:
    """An image member as tarfile finds it, without our index."""

    key: str
    offset: int
    length: int
    lead: int
    label: int


def check_shards(folder: Path, decode: bool, workers: int) -> tuple[ShardSet, list[Fault]]:
    """Read every shard again.

    Args:
        folder: Of the shards.
        decode: Decode every image too, which takes most of the time.
        workers: Processes.

    Returns:
        The set, and all that is wrong with it in shard order.

    Raises:
        UserError: The set cannot be opened: no index, or a shard is missing or of another size.
    """
    shards = ShardSet.open(folder)
    num_classes = len(shards.classes)
    records = np.asarray(shards.records)
    tasks = [
        CheckTask(folder, shard, records[start : start + shard.num_samples], num_classes, decode)
        for shard, start in zip(shards.shards, shards.starts[:-1], strict=True)
    ]
    sizes = [shard.num_samples for shard in shards.shards]
    found = run_tasks(check_shard, tasks, sizes, workers, "checking")
    return shards, [fault for faults in found for fault in faults]


def check_shard(task: CheckTask) -> list[Fault]:
    """Compare one tar with its index: hash, places, labels; if asked, decode its images too."""
    shard, path = task.shard, task.folder / task.shard.name
    faults: list[Fault] = []
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                problem = "its bytes are not those packed (sha256 differs)"
                faults.append(Fault(shard.name, "", problem))
        members = list(walk_images(path))
    except (tarfile.TarError, ValueError, OSError) as error:
        return [*faults, Fault(shard.name, "", f"the tar cannot be read: {error}")]
    if len(members) != len(task.records):
        # tarfile takes a damaged header for the end of the tar, so the last key tells where it is.
        last = members[-1].key if members else ""
        problem = f"the tar ends after {len(members)} of {len(task.records)} images"
        faults.append(Fault(shard.name, last, problem))
    with path.open("rb") as file:
        for member, record in zip(members, task.records, strict=False):
            problem = compare(member, record, task.num_classes)
            if not problem and task.decode:
                problem = decode_problem(os.pread(file.fileno(), member.length, member.offset))
            if problem:
                faults.append(Fault(shard.name, member.key, problem))
    return faults


def decode_problem(data: bytes) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        decode_image(data)
    except ValueError as error:
        return f"cannot be decoded: {error}"
    return ""


def walk_images(path: Path) -> Iterator[TarImage]:
    """The images of a tar with their labels, found by the standard library alone.

    Raises:
        ValueError: A label is no number.
        tarfile.TarError: The file is no tar.
    """
    waiting: TarImage | None = None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, ending = split_key(member.name)
            if ending == "cls" and waiting and waiting.key == key:
                content = tar.extractfile(member)
                text = content.read() if content else b""
                yield TarImage(
                    key, waiting.offset, waiting.length, waiting.lead, label=int(text.decode())
                )
                waiting = None
                continue
            if waiting:
                yield waiting
            lead = member.offset_data - member.offset
            waiting = TarImage(key, member.offset_data, member.size, lead, NO_LABEL)
    if waiting:
        yield waiting


def compare(member: TarImage, record: np.void, num_classes: int) -> str:
    """What differs between a tar's member and its record; empty if nothing does."""
    for name in ("offset", "length", "lead", "label"):
        found, said = getattr(member, name), int(record[name])
        if found != said:
            return f"{name} is {found} in the tar and {said} in the index"
    if not NO_LABEL <= member.label < num_classes:
        return f"class {member.label} is none of the {num_classes} classes"
    return ""
