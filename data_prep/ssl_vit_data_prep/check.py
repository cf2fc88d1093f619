"""Checking a set of shards end to end: its bytes, its index, and that its images decode."""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.decode import decode_image, facts_of
from ssl_vit.data.index_file import NO_LABEL, Shard, read_index, records_digest
from ssl_vit.data.pixel_digest import digest_pixels
from ssl_vit.data.raster import ImageFacts
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.urls import is_local
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import LabelError, number_of
from ssl_vit_data_prep.duplicates import Duplicates, empty_digests, find_duplicates
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts, count_images
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.tar_images import HashingReader, TarFile, walk_samples
from ssl_vit_data_prep.tar_labels import LabelRule
from ssl_vit_data_prep.workers import count_done, run_tasks


@dataclass(frozen=True)
class CheckTask:
    """One shard and its part of the index."""

    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    classes: tuple[str, ...]
    cache: ShardCache
    decode: bool
    rule: LabelRule
    """Where the labels are in the tar."""
    digest: bool = False
    """Whether to digest the decoded pixels."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown."""


@dataclass(frozen=True, eq=False)
class ShardReport:
    """The findings in one shard."""

    faults: list["Fault"]
    digests: np.ndarray | None
    """(num_samples, 16) uint8 digests of the pixels, zeros for an image that has none; None if they
    are not wanted."""
    counts: ImageCounts
    """Properties of the decoded images."""


@dataclass(frozen=True)
class Fault:
    """An error in a shard."""

    shard: str
    key: str
    """Key of the sample; empty for an error of the whole shard."""
    problem: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.problem) if part)


@dataclass(frozen=True)
class FoundFile:
    """A file of a sample as tarfile finds it, without our index."""

    key: str
    file: TarFile
    label: str


class CheckedSet(NamedTuple):
    """A set that was checked."""

    shards: ShardSet
    faults: list[Fault]
    """All errors in it, in shard order."""
    counts: ImageCounts
    """Properties of the decoded images."""
    duplicates: Duplicates | None
    """Images with the same pixels; None if they were not compared."""


def check_shards(
    source: str,
    decode: bool,
    workers: int,
    cache: ShardCache | None = None,
    duplicates: bool = False,
) -> CheckedSet:
    """Check every shard.

    Args:
        source: Folder or URL of the shards; remote ones are fetched.
        decode: Decode every image too, which takes most of the time.
        workers: Number of processes.
        duplicates: Compare the decoded pixels of all images.

    Raises:
        UserError: The set cannot be opened: no index, or a shard is missing or of another size.
    """
    # Wrong records are listed among the faults.
    shards = open_shards(source, cache, verifies_records=False)
    rules = [
        LabelRule.parse(read_index(part.folder).labels_from)
        for part in shards.parts
        for _ in part.places
    ]
    tasks = [
        CheckTask(
            shard,
            np.array(shards.records_of(number)),
            shards.classes,
            shards.cache,
            decode,
            rule,
            duplicates,
            shards.values,
        )
        for number, (shard, rule) in enumerate(zip(shards.shards, rules, strict=True))
    ]
    found = run_tasks(check_shard, tasks, shards.num_samples, workers, "checking")
    digests = [report.digests for report in found if report.digests is not None]
    return CheckedSet(
        shards,
        [fault for report in found for fault in report.faults],
        add_counts(report.counts for report in found),
        find_duplicates(np.concatenate(digests), shards.labels) if duplicates else None,
    )


def list_others(shards: ShardSet) -> list[str]:
    """Names of tars that are in the set's folder but not in its index."""
    known = {shard.name for shard in shards.shards}
    folders = {part.folder for part in shards.parts}
    return sorted(
        path.name for folder in folders for path in folder.glob("*.tar") if path.name not in known
    )


def check_shard(task: CheckTask) -> ShardReport:
    """Compare one tar with its index: hash, offsets, labels; optionally decode its images too."""
    digests = empty_digests(len(task.records)) if task.digest else None
    facts: list[ImageFacts] = []
    faults = _find_faults(task, facts, digests)
    return ShardReport(faults, digests, count_images(facts))


def _find_faults(
    task: CheckTask, facts: list[ImageFacts], digests: np.ndarray | None
) -> list[Fault]:
    shard = task.shard
    faults: list[Fault] = []
    found: dict[int, list[FoundFile]] = {}
    try:
        with task.cache.path(shard).open("rb") as file:
            reader = HashingReader(file)
            try:
                for each in find_files(reader, task.rule):
                    found.setdefault(each.file.offset, []).append(each)
            except (tarfile.TarError, LabelError) as error:
                faults.append(Fault(shard.name, "", f"the tar cannot be read: {error}"))
            if reader.finish() != shard.sha256:
                faults.insert(0, Fault(shard.name, "", _other_bytes(task)))
            faults += compare_all(task, found, file.fileno(), facts, digests)
    except UserError as error:
        return [Fault(shard.name, "", error.problem)]
    except OSError as error:
        faults.append(Fault(shard.name, "", f"the tar cannot be read: {error.strerror or error}"))
    if not faults and records_digest(task.records) != shard.records_sha256:
        faults.append(Fault(shard.name, "", "samples.npy is not the one of index.json"))
    return faults


def find_files(reader: HashingReader, rule: LabelRule) -> Iterator[FoundFile]:
    """All files of a tar with their samples' labels.

    Raises:
        tarfile.TarError: The file is not a tar, is truncated, or is not sorted.
        LabelError: A label is a list.
    """
    for sample in walk_samples(reader, rule):
        if isinstance(sample, Refusal):
            continue  # not part of a sample
        for file in sample.files:
            yield FoundFile(sample.key, file, sample.label)


def compare_all(
    task: CheckTask,
    found: Mapping[int, Sequence[FoundFile]],
    descriptor: int,
    facts: list[ImageFacts],
    digests: np.ndarray | None = None,
) -> Iterator[Fault]:
    """The differences between the files of a tar and its records; the tar may have further files.

    Args:
        found: Offset of its first byte → file, and the hard links to it.
        descriptor: File descriptor of the open tar.
        facts: The facts of every decoded image are appended.
        digests: (num_samples, 16) uint8, to be filled for the decoded images.
    """
    name = task.shard.name
    missing = [record for record in task.records if int(record["offset"]) not in found]
    for place, record in enumerate(task.records):
        if not (alike := found.get(int(record["offset"]), ())):
            continue
        lead = int(record["lead"])
        image = next((each for each in alike if each.file.lead == lead), alike[0])
        problem = compare(image, record, task.classes)
        if not problem and task.decode:
            data = os.pread(descriptor, image.file.length, image.file.offset)
            digest = None if digests is None else digests[place]
            problem = decode_problem(data, task.values, facts, digest)
        if problem:
            yield Fault(name, image.key, problem)
        count_done()
    if missing:
        offset = int(missing[0]["offset"])
        before = max((place for place in found if place <= offset), default=None)
        yield Fault(
            name,
            "" if before is None else found[before][0].key,
            f"{len(missing):,} of {len(task.records):,} images are not at their offset in the "
            f"index, the first at {offset:,}; the last file before it is named here",
        )


def _other_bytes(task: CheckTask) -> str:
    if is_local(task.shard.url):
        return "its bytes do not match the index (sha256 differs)"
    task.cache.remove(task.shard)
    return "its copy in the cache was damaged and has been removed: check again"


def decode_problem(
    data: bytes,
    values: ValueRange | None,
    facts: list[ImageFacts],
    digest: np.ndarray | None = None,
) -> str:
    """The reason why an image cannot be decoded; empty if it can.

    Args:
        values: How values of more than 8 bits are shown.
        facts: The image's facts are appended.
        digest: (16,) uint8, filled with the digest of its pixels.
    """
    try:
        facts.append(facts_of(data))
        pixels = decode_image(data, values)
    except ValueError as error:
        return f"cannot be decoded: {error}"
    if digest is not None:
        digest[:] = np.frombuffer(digest_pixels(pixels), np.uint8)
    return ""


def compare(image: FoundFile, record: np.void, classes: Sequence[str]) -> str:
    """The difference between an image of a tar and its record; empty if there is none."""
    file, label = image.file, int(record["label"])
    places = {"length": file.length, "lead": file.lead}
    for field, found in places.items():
        if found != int(record[field]):
            return f"{field} is {found} in the tar and {int(record[field])} in the index"
    if not NO_LABEL <= label < len(classes):
        return f"class {label} is not one of the {len(classes)} classes"
    if image.label and not _means(image.label, label, classes):
        return f"label is {image.label} in the tar and {label} in the index"
    return ""


def _means(text: str, label: int, classes: Sequence[str]) -> bool:
    """Whether a label in a tar means this class: its name, or its number in any notation."""
    if label == NO_LABEL:
        return False
    if text == classes[label]:
        return True
    number = number_of(text)
    return number is not None and number in (label, number_of(classes[label]))
