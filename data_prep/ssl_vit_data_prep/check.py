"""Reading a set of shards again, end to end: are bytes, index and images what they should be?"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.decode import decode_image
from ssl_vit.data.index_file import NO_LABEL, Shard, records_digest
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.tar_images import HashingReader, TarFile, walk_samples
from ssl_vit_data_prep.workers import count_done, run_tasks


@dataclass(frozen=True)
class CheckTask:
    """One shard, and what the index says of it."""

    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    classes: tuple[str, ...]
    cache: ShardCache
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
class FoundImage:
    """An image as tarfile finds it, without our index."""

    key: str
    file: TarFile
    label: str


def check_shards(
    source: str, decode: bool, workers: int, cache: ShardCache | None = None
) -> tuple[ShardSet, list[Fault]]:
    """Read every shard again.

    Args:
        source: Folder or URL of the shards; remote ones are fetched.
        decode: Decode every image too, which takes most of the time.
        workers: Processes.

    Returns:
        The set, and all that is wrong with it in shard order.

    Raises:
        UserError: The set cannot be opened: no index, or a shard is missing or of another size.
    """
    shards = open_shards(source, cache)
    tasks = [
        CheckTask(shard, np.array(shards.records_of(number)), shards.classes, shards.cache, decode)
        for number, shard in enumerate(shards.shards)
    ]
    found = run_tasks(check_shard, tasks, shards.num_samples, workers, "checking")
    return shards, [fault for faults in found for fault in faults]


def check_shard(task: CheckTask) -> list[Fault]:
    """Compare one tar with its index: hash, places, labels; if asked, decode its images too."""
    shard = task.shard
    faults: list[Fault] = []
    images: list[FoundImage] = []
    try:
        path = task.cache.path(shard)
    except UserError as error:
        return [Fault(shard.name, "", error.problem)]
    try:
        with path.open("rb") as file:
            reader = HashingReader(file)
            try:
                images += find_images(reader)
            finally:
                if reader.finish() != shard.sha256:
                    problem = "its bytes are not those packed (sha256 differs)"
                    faults.append(Fault(shard.name, "", problem))
    except (tarfile.TarError, OSError) as error:
        faults.append(Fault(shard.name, "", f"the tar cannot be read: {error}"))
    with path.open("rb") as file:
        faults += compare_all(task, images, file.fileno())
    if not faults and records_digest(task.records) != shard.records_sha256:
        faults.append(Fault(shard.name, "", "samples.npy is not the one of index.json"))
    return faults


def find_images(reader: HashingReader) -> Iterator[FoundImage]:
    """All images of a tar with their labels.

    Raises:
        tarfile.TarError: The file is no tar, or breaks off.
    """
    for sample in walk_samples(reader):
        for image in sample.images:
            yield FoundImage(sample.key, image, sample.label)


def compare_all(task: CheckTask, images: Sequence[FoundImage], descriptor: int) -> Iterator[Fault]:
    """What differs between the images of a tar and its records.

    Args:
        descriptor: Of the open tar.
    """
    records, name = task.records, task.shard.name
    if len(images) > len(records):
        # An index of some of the images: those at its offsets.
        wanted = set(records["offset"].tolist())
        images = [image for image in images if image.file.offset in wanted]
    if len(images) < len(records):
        # tarfile takes a damaged header for the end of the tar, so the last key tells where it is.
        last = images[-1].key if images else ""
        problem = f"the tar ends after {len(images):,} of {len(records):,} images"
        yield Fault(name, last, problem)
    for image, record in zip(images, records, strict=False):
        problem = compare(image, record, task.classes)
        if not problem and task.decode:
            problem = decode_problem(os.pread(descriptor, image.file.length, image.file.offset))
        if problem:
            yield Fault(name, image.key, problem)
        count_done()


def decode_problem(data: bytes) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        decode_image(data)
    except ValueError as error:
        return f"cannot be decoded: {error}"
    return ""


def compare(image: FoundImage, record: np.void, classes: Sequence[str]) -> str:
    """What differs between an image of a tar and its record; empty if nothing does."""
    file, label = image.file, int(record["label"])
    places = {"offset": file.offset, "length": file.length, "lead": file.offset - file.start}
    for field, found in places.items():
        if found != int(record[field]):
            return f"{field} is {found} in the tar and {int(record[field])} in the index"
    if not NO_LABEL <= label < len(classes):
        return f"class {label} is none of the {len(classes)} classes"
    said = (str(label), classes[label]) if label != NO_LABEL else ("",)
    if image.label and image.label not in said:
        return f"label is {image.label} in the tar and {label} in the index"
    return ""
