"""An index for shards that others wrote: every tar is read once, and a few images are decoded.

What img2dataset, open_clip and webdataset make: images beside `.cls`, `.json` and `.txt`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_vit.data.fetch import FIRST_ATTEMPTS
from ssl_vit.data.index_file import INDEX_FILE, NO_LABEL, Index, write_index
from ssl_vit.data.urls import is_local
from ssl_vit.errors import UserError
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts
from ssl_vit_data_prep.parts import Parts, WrittenShard
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
    """What an index holds."""

    folder: Path
    index: Index
    num_bytes: int
    endings: dict[str, int]
    """Images of every ending, the most frequent first."""
    num_several: int
    """Samples with more than one image."""
    num_labeled: int
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
            tasks = _tasks(urls, folder, options, parts)
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


def _tasks(
    urls: Sequence[str], folder: Path, options: IndexOptions, parts: Parts
) -> list[IndexTask]:
    return [
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


def _check_found(
    filled: Sequence[WrittenShard],
    refused: Sequence[Refusal],
    urls: Sequence[str],
    options: IndexOptions,
    parts: Parts,
) -> None:
    """Refuse an index of nothing; other options will read the shards again."""
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
    """What the sampled images of all shards say.

    Raises:
        UserError: Most of them cannot be read.
    """
    looks = [look for result in results for look in result.looks]
    check_readable(looks, source)
    return survey(looks, options.values, options.no_data)
