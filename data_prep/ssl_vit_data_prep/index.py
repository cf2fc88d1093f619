"""An index for shards that others wrote: every tar is read once, and no image is decoded.

What img2dataset, open_clip and webdataset's own writer make: images of any ending beside `.cls`,
`.json` and `.txt`, one or several a sample.
"""

import glob
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssl_vit.data.decode import facts_of
from ssl_vit.data.fetch import ATTEMPTS, FIRST_ATTEMPTS, fetch_file, try_often
from ssl_vit.data.formats import ENDINGS
from ssl_vit.data.index_file import (
    INDEX_FILE,
    NO_LABEL,
    SAMPLE_RECORD,
    Index,
    describe_shard,
    records_digest,
    write_index,
)
from ssl_vit.data.urls import check_allowed, expand, is_local, local_path
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts
from ssl_vit_data_prep.parts import Parts, WrittenShard, unfinished_command
from ssl_vit_data_prep.plan import digest
from ssl_vit_data_prep.refusals import Kind, Refusal, count_kinds, write_refused
from ssl_vit_data_prep.survey import SAMPLED_IMAGES, Look, Survey, check_readable, look_at, survey
from ssl_vit_data_prep.tar_images import HashingReader, TarFile, TarSample, walk_samples
from ssl_vit_data_prep.workers import count_done, run_tasks

_COMPRESSED = (".gz", ".tgz", ".zst", ".xz", ".bz2")
_MOST_CLASSES = 10_000_000


@dataclass(frozen=True)
class IndexOptions:
    """Which files of a sample count."""

    endings: tuple[str, ...] = ENDINGS
    """Of images: `jpg` takes `a.jpg` and `a.left.jpg`, `left.jpg` the second alone."""
    label_field: str = ""
    """Of a sample's `.json`, that holds its label; empty: labels are in `.cls`."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by number; empty: taken from the labels."""
    allow_shell_urls: bool = False
    values: ValueRange | None = None
    """How values of more than 8 bits are shown; None: measured on a sample."""
    no_data: float | None = None
    """Value of pixels that were not measured; None: what the files say, or what stands out."""


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
    _check_complete(urls)
    folder = folder or _folder_of(urls)
    if (folder / INDEX_FILE).exists() and not overwrite:
        raise UserError(f"{folder} already has an {INDEX_FILE}", "--overwrite replaces it")
    parts = Parts(folder, "index", digest((), (_states(urls), options)))
    try:
        with parts.open():
            tasks = [
                IndexTask(
                    url,
                    _entry(url, folder),
                    f"{number:08d}",
                    options,
                    parts,
                    _num_sampled(number, len(urls)),
                )
                for number, url in enumerate(urls)
            ]
            if not is_local(urls[0]):
                # Alone and with few tries: a mistyped address is known in seconds.
                index_shard(replace(tasks[0], attempts=FIRST_ATTEMPTS))
            results = run_tasks(index_shard, tasks, len(tasks), workers, "indexing", "shards")
            refused = [refusal for result in results for refusal in result.refused]
            filled = [result for result in results if len(result.records)]
            _check_found(filled, urls, options, parts)
            classes, filled = number_labels(filled, options.classes)
            looks = [look for result in filled for look in result.looks]
            check_readable(looks, sources[0])
            surveyed = survey(looks, options.values, options.no_data)
            shards = tuple(result.shard for result in filled)
            index = Index(shards, classes, None, surveyed.values)
            write_refused(folder, refused)
            write_index(folder, index, [result.records for result in filled])
            parts.remove()
    except OSError as error:
        raise UserError(
            f"cannot write the index into {folder}: {error.strerror or error}",
            "give --out a folder that can be written",
        ) from None
    return _summarize(folder, index, filled, refused, surveyed)


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


def list_shards(sources: Sequence[str], allow_shell_urls: bool) -> list[str]:
    """Every shard that the sources mean, in their order.

    Raises:
        UserError: One means none, or a shard that cannot be indexed.
    """
    urls: list[str] = []
    for source in sources:
        for location in expand(source):
            check_allowed(location, allow_shell_urls)
            urls += _list_local(location) if is_local(location) else [location]
    if compressed := [url for url in urls if url.partition("?")[0].endswith(_COMPRESSED)]:
        raise UserError(
            f"{compressed[0]} is compressed: a sample in it cannot be reached without what is "
            "before it",
            "unpack it first, for example with gunzip; JPEGs hardly shrink anyway",
        )
    if twice := [url for url, count in Counter(urls).items() if count > 1]:
        raise UserError(f"{twice[0]} is named twice", "name every shard once")
    return urls


def _check_complete(urls: Sequence[str]) -> None:
    for folder in {local_path(url).parent for url in urls if is_local(url)}:
        if (command := unfinished_command(folder)) in ("pack", "reshard"):
            raise UserError(
                f"the shards in {folder} are not complete: the {command} that makes them has not "
                "ended",
                "run that command again; it goes on where it was, and makes the index",
            )


def _check_found(
    filled: Sequence[WrittenShard], urls: Sequence[str], options: IndexOptions, parts: Parts
) -> None:
    """Refuse an index of nothing; other options will read the shards anew."""
    if not filled:
        parts.remove()
        raise UserError(
            f"the {len(urls):,} shards hold no images that end in {', '.join(options.endings)}",
            "give --endings, as they stand in the tars (`tar tf SHARD | head`)",
        )
    if options.label_field and not any(result.labels for result in filled):
        parts.remove()
        raise UserError(
            f"no sample has a .json with the field {options.label_field}",
            f"see what they have:  tar xOf {urls[0]} --wildcards '*.json' | head -c 1000",
        )


def number_labels(
    results: Sequence[WrittenShard], names: Sequence[str]
) -> tuple[tuple[str, ...], list[WrittenShard]]:
    """Class names, and the shards with their labels numbered by them.

    Args:
        results: Their records' labels are places in their ``labels``.
        names: Of the classes, by number; empty: the labels themselves are the names.

    Raises:
        UserError: A label is none of the classes.
    """
    texts = sorted({text for result in results for text in result.labels})
    if names:
        classes = tuple(names)
    elif all(text.isdecimal() for text in texts):
        largest = max((int(text) for text in texts), default=-1)
        if largest >= _MOST_CLASSES:
            raise UserError(
                f"the label {largest} is too large for the number of a class",
                "give --label-field, or --classes FILE with a name a line",
            )
        classes = tuple(str(number) for number in range(largest + 1))
    else:
        classes = tuple(texts)
    by_name = {name: number for number, name in enumerate(classes)}
    numbered = []
    for result in results:
        numbers = [_number_of(text, by_name) for text in result.labels]
        records = result.records.copy()
        labels = np.array([*numbers, NO_LABEL], dtype=np.int32)
        records["label"] = labels[records["label"]]
        shard = replace(result.shard, records_sha256=records_digest(records))
        numbered.append(replace(result, shard=shard, records=records, labels=[]))
    return classes, numbered


def _summarize(
    folder: Path,
    index: Index,
    results: Sequence[WrittenShard],
    refused: Sequence[Refusal],
    surveyed: Survey,
) -> IndexSummary:
    endings: Counter[str] = Counter()
    for result in results:
        endings.update(result.endings)
    return IndexSummary(
        folder,
        index,
        sum(shard.num_bytes for shard in index.shards),
        {ending: count for ending, count in endings.most_common() if ending},
        endings[""],
        sum(int((result.records["label"] != NO_LABEL).sum()) for result in results),
        surveyed,
        add_counts(result.counts for result in results),
        count_kinds(refused),
    )


def _number_of(text: str, by_name: dict[str, int]) -> int:
    if text in by_name:
        return by_name[text]
    if text.isdecimal() and int(text) < len(by_name):
        return int(text)
    raise UserError(
        f"the label {text} is none of the {len(by_name):,} classes", "add it to the file of classes"
    )


def _read_shard(task: IndexTask, reader: HashingReader) -> WrittenShard:
    rows: list[tuple[int, int, int, int]] = []
    labels: dict[str, int] = {}
    endings: Counter[str] = Counter()
    refused: list[Refusal] = []
    for sample in walk_samples(reader, task.options.label_field):
        label = labels.setdefault(sample.label, len(labels)) if sample.label else NO_LABEL
        before = len(rows)
        for image in _wanted(sample, task.options.endings):
            if not 0 < image.length < 2**31:
                kind: Kind = "too large" if image.length else "empty"
                refused.append(Refusal(f"{task.entry}/{image.name}", kind, f"{image.length} bytes"))
                continue
            rows.append((image.offset, image.length, image.offset - image.start, label))
            endings[image.ending] += 1
        endings[""] += len(rows) - before > 1  # under no ending: samples with several
    sha256 = reader.finish()
    records = np.array(rows, dtype=SAMPLE_RECORD)
    shard = describe_shard(task.entry, reader.num_bytes, sha256, records)
    counts, looks = _sample(reader, records, task.num_sampled)
    return WrittenShard(
        shard,
        records,
        refused,
        labels=list(labels),
        endings=dict(endings),
        counts=counts,
        looks=looks,
    )


def _num_sampled(number: int, num_shards: int) -> int:
    """Images to decode of a shard, so that they are spread over all shards."""
    return SAMPLED_IMAGES * (number + 1) // num_shards - SAMPLED_IMAGES * number // num_shards


def _sample(
    reader: HashingReader, records: np.ndarray, count: int
) -> tuple[ImageCounts, list[Look]]:
    """Some images of a shard, evenly spread."""
    counts, looks = ImageCounts(), []
    places = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    for record in records[places]:
        data = reader.at(int(record["offset"]), int(record["length"]))
        looks.append(look_at(data))
        if not looks[-1].problem:
            counts = counts.add(facts_of(data))
    return counts, looks


def _wanted(sample: TarSample, endings: Sequence[str]) -> Iterator[TarFile]:
    for file in sample.files:
        if any(file.ending == ending or file.ending.endswith(f".{ending}") for ending in endings):
            yield file


def _states(urls: Sequence[str]) -> list[tuple[str, int, int]]:
    """Each shard with size and time of its last change, where it is local."""
    found = []
    for url in urls:
        try:
            state = local_path(url).stat() if is_local(url) else None
        except OSError as error:
            raise UserError(
                f"cannot read shard {url}: {error.strerror}", "remove it, or make it readable"
            ) from None
        found.append((url, state.st_size, state.st_mtime_ns) if state else (url, 0, 0))
    return found


def _list_local(location: str) -> list[str]:
    path = local_path(location)
    if path.is_dir():
        found = sorted(str(tar) for tar in path.glob("*.tar"))
    elif glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path)))
    else:
        found = [str(path)] if path.is_file() else []
    if not found:
        raise UserError(f"there are no shards at {location}", "give tars, or a folder of them")
    return found


def _folder_of(urls: Sequence[str]) -> Path:
    folders = {local_path(url).parent.resolve() if is_local(url) else None for url in urls}
    folder = folders.pop()
    if folders or folder is None:
        raise UserError(
            "the shards do not lie in one local folder, where their index would go",
            "say where it goes:  --out INDEX",
        )
    return folder


def _entry(url: str, folder: Path) -> str:
    """How an index in ``folder`` calls a shard: by name where it lies beside it, else by URL."""
    if not is_local(url):
        return url
    path = local_path(url).resolve()
    return path.name if path.parent == folder.resolve() else path.as_uri()
