"""An index for shards that others wrote: every tar is read once, and no image is decoded.

What img2dataset, open_clip and webdataset make: images beside `.cls`, `.json` and `.txt`.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssl_vit.data.fetch import ATTEMPTS, FIRST_ATTEMPTS, fetch_file, try_often
from ssl_vit.data.formats import ENDINGS
from ssl_vit.data.index_file import (
    INDEX_FILE,
    NO_LABEL,
    SAMPLE_RECORD,
    Index,
    describe_shard,
    write_index,
)
from ssl_vit.data.urls import is_local, local_path
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import LabelError
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts
from ssl_vit_data_prep.parts import Parts, WrittenShard
from ssl_vit_data_prep.plan import digest
from ssl_vit_data_prep.refusals import Kind, Refusal, count_kinds, write_refused
from ssl_vit_data_prep.sampling import num_sampled, sample_tar
from ssl_vit_data_prep.shard_list import (
    check_complete,
    entry_of,
    folder_of,
    list_compressed,
    list_shards,
    states_of,
)
from ssl_vit_data_prep.survey import Survey, check_readable, survey
from ssl_vit_data_prep.tar_images import (
    HashingReader,
    TarFile,
    TarSample,
    UnsortedError,
    folder_in_tar,
    label_in_tar,
    walk_samples,
)
from ssl_vit_data_prep.tar_labels import (
    LabelRule,
    LabelSource,
    check_renamed,
    describe_hints,
    list_fields,
    number_labels,
)
from ssl_vit_data_prep.workers import count_done, run_tasks

_TOPICS = ("missing", "fields", "folders", "repeated")
_MOST_FOLDERS = 1000  # listed in a shard, for a hint
_MOST_JSON = 8  # looked into in a shard, for a hint


@dataclass(frozen=True)
class IndexOptions:
    """Which files of a sample count."""

    endings: tuple[str, ...] = ENDINGS
    """Of images: `jpg` takes `a.jpg` and `a.left.jpg`, `left.jpg` the second alone."""
    label_field: str = ""
    """Of a sample's `.json`, that holds its label; makes ``labels`` `json`."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by number; empty: the labels."""
    allow_shell_urls: bool = False
    labels: LabelSource = "cls"
    """Where labels are: the `.cls`, the `.json`, the folder in the tar, or the tar's name."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown; None: measured on a sample."""
    no_data: float | None = None
    """Value of pixels that were not measured; None: what the files say, or what stands out."""

    @property
    def rule(self) -> LabelRule:
        """Where labels are."""
        return LabelRule("json" if self.label_field else self.labels, self.label_field)


@dataclass(frozen=True)
class IndexTask:
    """All that a worker process needs to read one shard."""

    url: str
    entry: str
    """How the index calls it."""
    name: str
    """Of its part."""
    options: IndexOptions
    parts: Parts
    num_sampled: int
    """Images that are decoded, at most."""
    attempts: int = ATTEMPTS


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds."""

    folder: Path
    index: Index
    num_bytes: int
    endings: dict[str, int]
    """Images of every ending, the most frequent first."""
    num_several: int
    """Samples with more than one image."""
    num_labelled: int
    survey: Survey
    """What the sampled images say of all."""
    counts: ImageCounts
    """Of the sampled images."""
    refused: dict[Kind, int]
    saw: dict[str, dict[str, int]]
    """What was counted in all shards: texts that are no label (`missing`), `fields` of `.json`,
    `folders` of images, files of a name that came before (`repeated`).
    """
    hints: tuple[str, ...]
    """Where labels might be; empty where there are some."""
    merged: tuple[str, ...]
    """Labels that are another way to write the number of their class."""


def index_shards(
    sources: Sequence[str],
    folder: Path | None,
    options: IndexOptions,
    workers: int,
    overwrite: bool = False,
) -> IndexSummary:
    """Write the index of shards that are there already.

    Args:
        sources: Paths or URLs, with braces, `*` (paths), or a folder of tars.
        folder: Of the index; None: that of the shards, if they lie in one local folder.
        workers: Processes.
        overwrite: Replace an index that is there.

    Raises:
        UserError: No shards, one that cannot be read, no images in them, or labels that make no
            classes.
    """
    urls = list_shards(sources, options.allow_shell_urls)
    check_complete(urls)
    folder = folder or folder_of(urls)
    if (folder / INDEX_FILE).exists() and not overwrite:
        raise UserError(f"{folder} already has an {INDEX_FILE}", "--overwrite replaces it")
    parts = Parts(folder, "index", digest((), (states_of(urls), options)))
    try:
        with parts.open():
            tasks = [
                IndexTask(
                    url,
                    entry_of(url, folder),
                    f"{number:08d}",
                    options,
                    parts,
                    num_sampled(number, len(urls)),
                )
                for number, url in enumerate(urls)
            ]
            if not is_local(urls[0]):
                # Alone and with few tries: a mistyped address is known in seconds.
                index_shard(replace(tasks[0], attempts=FIRST_ATTEMPTS))
            results = run_tasks(index_shard, tasks, len(tasks), workers, "indexing", "shards")
            refused = [refusal for result in results for refusal in result.refused]
            refused += list_compressed(sources)
            filled = [result for result in results if len(result.records)]
            _check_found(filled, refused, urls, options, parts)
            try:
                table, filled = number_labels(filled, options.classes, options.rule)
                surveyed = _survey(filled, sources[0], options)
                shards = tuple(result.shard for result in filled)
                index = Index(shards, table.names, None, surveyed.values, str(options.rule))
                check_renamed(folder, index)
            except UserError:
                parts.remove()  # other options will read the shards again
                raise
            write_refused(folder, refused)
            write_index(folder, index, [result.records for result in filled])
            parts.remove()
    except OSError as error:
        raise UserError(
            f"cannot write the index into {folder}: {error.strerror or error}",
            "give --out a folder that can be written",
        ) from None
    return _summarize(folder, index, filled, refused, surveyed, table.merged)


def index_shard(task: IndexTask) -> WrittenShard:
    """Read one shard; one that a killed command had read is not read again."""
    if part := task.parts.load(task.name):
        count_done()
        return part
    # A remote shard is read from a copy, which goes at once.
    copy = task.parts.folder / f"{task.name}.tar"
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
            "give --label-field a field that holds one short text or number"
            if task.options.label_field
            else "a .cls holds one short text or number; --labels says where else labels are",
        ) from None
    except tarfile.TarError as error:
        raise UserError(
            f"cannot read shard {task.url}: {error}", "is it a whole, uncompressed tar?"
        ) from None
    except OSError as error:
        place = "" if is_local(task.url) else f" into {copy.parent}"
        raise UserError(
            f"cannot read shard {task.url}{place}: {error.strerror or error}",
            "make it readable" if is_local(task.url) else "give --out a folder that has room",
        ) from None
    finally:
        copy.unlink(missing_ok=True)
    task.parts.save(task.name, found)
    count_done()
    return found


def _check_found(
    filled: Sequence[WrittenShard],
    refused: Sequence[Refusal],
    urls: Sequence[str],
    options: IndexOptions,
    parts: Parts,
) -> None:
    """Refuse an index of nothing; other options will read the shards anew."""
    if not filled:
        parts.remove()
        if archives := [each.path for each in refused if each.kind == "inner archive"]:
            raise UserError(
                f"the shards hold archives instead of images, such as {archives[0]}",
                "unpack them, and index the tars that were in them",
            )
        raise UserError(
            f"the {len(urls):,} shards hold no images that end in {', '.join(options.endings)}",
            "give --endings, as they stand in the tars (`tar tf SHARD | head`)",
        )
    if options.label_field and not any(result.labels for result in filled):
        parts.remove()
        fields = list(dict.fromkeys(name for each in filled for name in each.saw["fields"]))
        raise UserError(
            f"no sample has a .json with a label in the field {options.label_field}",
            f"they have {', '.join(fields)}"
            if fields
            else f"see what they have:  tar xOf {urls[0]} --wildcards '*.json' | head -c 1000",
        )


def _summarize(
    folder: Path,
    index: Index,
    results: Sequence[WrittenShard],
    refused: Sequence[Refusal],
    surveyed: Survey,
    merged: tuple[str, ...],
) -> IndexSummary:
    endings: Counter[str] = Counter()
    saw: dict[str, Counter[str]] = {topic: Counter() for topic in _TOPICS}
    for result in results:
        endings.update(result.endings)
        for topic, counts in result.saw.items():
            saw[topic].update(counts)
    num_labelled = sum(int((result.records["label"] != NO_LABEL).sum()) for result in results)
    urls = [shard.url for shard in index.shards]
    return IndexSummary(
        folder,
        index,
        sum(shard.num_bytes for shard in index.shards),
        {ending: count for ending, count in endings.most_common() if ending},
        endings[""],
        num_labelled,
        surveyed,
        add_counts(result.counts for result in results),
        count_kinds(refused),
        {topic: dict(counts) for topic, counts in saw.items()},
        () if num_labelled else tuple(describe_hints(saw, urls)),
        merged,
    )


def _read_shard(task: IndexTask, reader: HashingReader) -> WrittenShard:
    rows: list[tuple[int, int, int, int]] = []
    labels: dict[str, int] = {}
    endings: Counter[str] = Counter()
    refused: list[Refusal] = []
    saw: dict[str, Counter[str]] = {topic: Counter() for topic in _TOPICS}
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
            if not 0 < image.length < 2**31:
                kind: Kind = "too large" if image.length else "empty"
                refused.append(Refusal(f"{task.entry}/{image.name}", kind, f"{image.length} bytes"))
                continue
            # Only now: a label without an image makes no class.
            label = labels.setdefault(text, len(labels)) if text else NO_LABEL
            rows.append((image.offset, image.length, image.lead, label))
            endings[image.ending] += 1
        endings[""] += len(rows) - before > 1  # under no ending: samples with several
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


def _survey(results: Sequence[WrittenShard], source: str, options: IndexOptions) -> Survey:
    """What the sampled images of all shards say.

    Raises:
        UserError: Most of them cannot be read.
    """
    looks = [look for result in results for look in result.looks]
    check_readable(looks, source)
    return survey(looks, options.values, options.no_data)


def _look(sample: TarSample, num_images: int, saw: dict[str, Counter[str]]) -> None:
    """Count what a summary may need."""
    if sample.said:
        saw["missing"][sample.said] += num_images
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
