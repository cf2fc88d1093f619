"""Reading one existing shard: its images, labels and other members."""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssl_vit.data.fetch import ATTEMPTS, fetch_file, try_often
from ssl_vit.data.formats import ENDINGS
from ssl_vit.data.index_file import NO_LABEL, SAMPLE_RECORD, describe_shard
from ssl_vit.data.limits import MAX_DECODE_BYTES
from ssl_vit.data.urls import is_local, local_path
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import LabelError
from ssl_vit_data_prep.finished_shards import FinishedShards, WrittenShard
from ssl_vit_data_prep.refusals import Kind, Refusal
from ssl_vit_data_prep.sampling import sample_tar
from ssl_vit_data_prep.tar_images import (
    HashingReader,
    TarFile,
    TarSample,
    UnsortedError,
    folder_in_tar,
    label_in_tar,
    walk_samples,
)
from ssl_vit_data_prep.tar_labels import LabelRule, LabelSource, list_fields
from ssl_vit_data_prep.workers import count_done

TOPICS = ("missing", "fields", "folders", "repeated")
"""Further counts in a shard: see ``IndexSummary.saw``."""
_MOST_FOLDERS = 1000  # counted per shard, for a hint
_MOST_JSON = 8  # read per shard, for a hint


@dataclass(frozen=True)
class IndexOptions:
    """Options of an index."""

    endings: tuple[str, ...] = ENDINGS
    """Endings of images: `jpg` matches `a.jpg` and `a.left.jpg`, `left.jpg` only the second."""
    label_field: str = ""
    """Field of a sample's `.json` that has its label; implies that ``labels`` is `json`."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by number; empty: the labels."""
    allow_shell_urls: bool = False
    labels: LabelSource = "cls"
    """Where labels are: the `.cls`, the `.json`, the folder in the tar, or the tar's name."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown; None: measured on a sample."""
    no_data: float | None = None
    """Value of pixels without data; None: as the files declare, or detected."""

    @property
    def rule(self) -> LabelRule:
        """Where labels are."""
        return LabelRule("json" if self.label_field else self.labels, self.label_field)


@dataclass(frozen=True)
class IndexTask:
    """All that a worker process needs to read one shard."""

    url: str
    entry: str
    """Its ``url`` in the index."""
    name: str
    """Name under which the finished shard is saved."""
    options: IndexOptions
    finished: FinishedShards
    num_sampled: int
    """Most images that are decoded."""
    attempts: int = ATTEMPTS


def index_shard(task: IndexTask) -> WrittenShard:
    """Read one shard, unless a killed command had read it."""
    if part := task.finished.load(task.name):
        count_done()
        return part
    # A remote shard is read from a copy, which is then deleted.
    copy = task.finished.folder / f"{task.name}.tar"
    try:
        if not is_local(task.url):
            try_often(task.url, lambda: fetch_file(task.url, copy), task.attempts)
        path = local_path(task.url) if is_local(task.url) else copy
        with path.open("rb") as file:
            found = _read_shard(task, HashingReader(file))
    except UnsortedError as error:
        raise UserError(
            f"shard {task.url}: {error}",
            "unpack it and make it again:  tar --sort=name -cf NEW.tar -C FOLDER .",
        ) from None
    except LabelError as error:
        raise UserError(
            f"shard {task.url}: {error}, which is not a label",
            "set --label-field to a field with one short text or number"
            if task.options.label_field
            else "a .cls has one short text or number; use --labels if labels are elsewhere",
        ) from None
    except tarfile.TarError as error:
        raise UserError(
            f"cannot read shard {task.url}: {error}",
            "check that it is a complete, uncompressed tar",
        ) from None
    except OSError as error:
        place = "" if is_local(task.url) else f" into {copy.parent}"
        raise UserError(
            f"cannot read shard {task.url}{place}: {error.strerror or error}",
            "make it readable" if is_local(task.url) else "set --out to a folder with free space",
        ) from None
    finally:
        copy.unlink(missing_ok=True)
    task.finished.save(task.name, found)
    count_done()
    return found


def _read_shard(task: IndexTask, reader: HashingReader) -> WrittenShard:
    rows: list[tuple[int, int, int, int]] = []
    labels: dict[str, int] = {}
    endings: Counter[str] = Counter()
    refused: list[Refusal] = []
    saw: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    rule = task.options.rule
    for sample in walk_samples(reader, rule, _MOST_JSON):
        if isinstance(sample, Refusal):
            path = f"{task.entry}/{sample.path}" if sample.path else task.entry
            refused.append(replace(sample, path=path))
            continue
        text = label_in_tar(sample, task.url, task.options.rule)
        before = len(rows)
        images = list(_wanted(sample, task.options.endings))
        for image in images:
            if not 0 < image.length <= MAX_DECODE_BYTES:
                kind: Kind = "too large" if image.length else "empty"
                reason = f"{image.length:,} bytes"
                refused.append(Refusal(f"{task.entry}/{image.name}", kind, reason))
                continue
            # Only now: a label without an image does not make a class.
            label = labels.setdefault(text, len(labels)) if text else NO_LABEL
            rows.append((image.offset, image.length, image.lead, label))
            endings[image.ending] += 1
        endings[""] += len(rows) - before > 1  # the empty ending counts samples with several images
        if not images and not any(file.is_archive for file in sample.files):
            found = ", ".join(file.ending for file in sample.files)
            path = f"{task.entry}/{sample.files[0].name}"
            refused.append(Refusal(path, "no image ending", f"the endings of its sample: {found}"))
        _look(sample, len(rows) - before, saw)
    sha256 = reader.finish()
    records = np.array(rows, dtype=SAMPLE_RECORD)
    shard = describe_shard(task.entry, reader.num_bytes, sha256, records)
    counted = {topic: dict(counts) for topic, counts in saw.items()}
    counts, looks = sample_tar(reader, records, task.num_sampled)
    return WrittenShard(
        shard,
        records,
        refused,
        labels=list(labels),
        endings=dict(endings),
        saw=counted,
        counts=counts,
        looks=looks,
    )


def _look(sample: TarSample, num_images: int, saw: dict[str, Counter[str]]) -> None:
    """Count what the summary may report."""
    if sample.no_label:
        saw["missing"][sample.no_label] += num_images
    saw["repeated"][""] += sample.num_repeated
    folder = folder_in_tar(sample)
    if folder in saw["folders"] or len(saw["folders"]) < _MOST_FOLDERS:
        saw["folders"][folder] += num_images
    if sample.json:
        saw["fields"].update(list_fields(sample.json))


def _wanted(sample: TarSample, endings: Sequence[str]) -> Iterator[TarFile]:
    for file in sample.files:
        if any(file.ending == ending or file.ending.endswith(f".{ending}") for ending in endings):
            yield file
