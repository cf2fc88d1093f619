"""An index for existing shards: every tar is read once, and a few images are decoded.

For the shards of img2dataset, open_clip and webdataset: images beside `.cls`, `.json` and `.txt`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_vit.data.fetch import FIRST_ATTEMPTS
from ssl_vit.data.index_file import INDEX_FILE, NO_LABEL, Index, write_index
from ssl_vit.data.urls import is_local
from ssl_vit.errors import UserError
from ssl_vit_data_prep.finished_shards import FinishedShards, WrittenShard
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts
from ssl_vit_data_prep.plan import digest
from ssl_vit_data_prep.refusals import Kind, Refusal, count_kinds, write_refused
from ssl_vit_data_prep.sampling import num_sampled
from ssl_vit_data_prep.shard_list import (
    check_complete,
    entry_of,
    folder_of,
    list_compressed,
    list_shards,
    states_of,
)
from ssl_vit_data_prep.survey import Survey, check_readable, survey
from ssl_vit_data_prep.tar_index import TOPICS, IndexOptions, IndexTask, index_shard
from ssl_vit_data_prep.tar_labels import (
    check_renamed,
    describe_hints,
    number_labels,
)
from ssl_vit_data_prep.workers import run_tasks


@dataclass(frozen=True)
class IndexSummary:
    """A summary of a new index."""

    folder: Path
    index: Index
    num_bytes: int
    endings: dict[str, int]
    """Ending → number of images, the most frequent first."""
    num_several: int
    """Number of samples with more than one image."""
    num_labeled: int
    survey: Survey
    """The survey of the sampled images."""
    counts: ImageCounts
    """Properties of the sampled images."""
    refused: dict[Kind, int]
    saw: dict[str, dict[str, int]]
    """Counts over all shards: texts that mean "no label" (`missing`), `fields` of `.json`,
    `folders` of images, files whose name came before (`repeated`).
    """
    hints: tuple[str, ...]
    """Where labels might be; empty if there are some."""
    merged: tuple[str, ...]
    """Labels that are other notations of their class's number."""


def index_shards(
    sources: Sequence[str],
    folder: Path | None,
    options: IndexOptions,
    workers: int,
    overwrite: bool = False,
) -> IndexSummary:
    """Write the index of existing shards.

    Args:
        sources: Paths or URLs, with braces, `*` (paths), or a folder of tars.
        folder: Folder of the index; None: that of the shards, if they are in one local folder.
        workers: Number of processes.
        overwrite: Replace an existing index.

    Raises:
        UserError: No shards, one that cannot be read, no images in them, or labels that do not form
            classes.
    """
    urls = list_shards(sources, options.allow_shell_urls)
    check_complete(urls)
    folder = folder or folder_of(urls)
    if (folder / INDEX_FILE).exists() and not overwrite:
        raise UserError(f"{folder} already has an {INDEX_FILE}", "--overwrite replaces it")
    finished = FinishedShards(folder, "index", digest((), (states_of(urls), options)))
    try:
        with finished.open():
            tasks = _tasks(urls, folder, options, finished)
            if not is_local(urls[0]):
                # Alone and with few tries: a mistyped address is reported in seconds.
                index_shard(replace(tasks[0], attempts=FIRST_ATTEMPTS))
            results = run_tasks(index_shard, tasks, len(tasks), workers, "indexing", "shards")
            refused = [refusal for result in results for refusal in result.refused]
            refused += list_compressed(sources)
            filled = [result for result in results if len(result.records)]
            _check_found(filled, refused, urls, options, finished)
            try:
                table, filled = number_labels(filled, options.classes, options.rule)
                surveyed = _survey(filled, sources[0], options)
                shards = tuple(result.shard for result in filled)
                index = Index(shards, table.names, None, surveyed.values, str(options.rule))
                check_renamed(folder, index)
            except UserError:
                finished.remove()  # with other options the shards are read again
                raise
            write_refused(folder, refused)
            write_index(folder, index, [result.records for result in filled])
            finished.remove()
    except OSError as error:
        raise UserError(
            f"cannot write the index into {folder}: {error.strerror or error}",
            "set --out to a writable folder",
        ) from None
    return _summarize(folder, index, filled, refused, surveyed, table.merged)


def _tasks(
    urls: Sequence[str], folder: Path, options: IndexOptions, finished: FinishedShards
) -> list[IndexTask]:
    return [
        IndexTask(
            url,
            entry_of(url, folder),
            f"{number:08d}",
            options,
            finished,
            num_sampled(number, len(urls)),
        )
        for number, url in enumerate(urls)
    ]


def _check_found(
    filled: Sequence[WrittenShard],
    refused: Sequence[Refusal],
    urls: Sequence[str],
    options: IndexOptions,
    finished: FinishedShards,
) -> None:
    """Refuse an empty index, and have the shards read again with other options."""
    if not filled:
        finished.remove()
        if archives := [each.path for each in refused if each.kind == "inner archive"]:
            raise UserError(
                f"the shards hold archives instead of images, such as {archives[0]}",
                "unpack them, and index the tars inside them",
            )
        raise UserError(
            f"no images with the ending {' or '.join(options.endings)} in {len(urls):,} shards",
            "set --endings to those in the tars (`tar tf SHARD | head`)",
        )
    if options.label_field and not any(result.labels for result in filled):
        finished.remove()
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
    saw: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
    for result in results:
        endings.update(result.endings)
        for topic, counts in result.saw.items():
            saw[topic].update(counts)
    num_labeled = sum(int((result.records["label"] != NO_LABEL).sum()) for result in results)
    urls = [shard.url for shard in index.shards]
    return IndexSummary(
        folder,
        index,
        sum(shard.num_bytes for shard in index.shards),
        {ending: count for ending, count in endings.most_common() if ending},
        endings[""],
        num_labeled,
        surveyed,
        add_counts(result.counts for result in results),
        count_kinds(refused),
        {topic: dict(counts) for topic, counts in saw.items()},
        () if num_labeled else tuple(describe_hints(saw, urls)),
        merged,
    )


def _survey(results: Sequence[WrittenShard], source: str, options: IndexOptions) -> Survey:
    """The survey of the sampled images of all shards.

    Raises:
        UserError: Most of them cannot be read.
    """
    looks = [look for result in results for look in result.looks]
    check_readable(looks, source)
    return survey(looks, options.values, options.no_data)
