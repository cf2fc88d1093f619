"""Image folder → WebDataset tars plus index. Image bytes are copied untouched unless asked.

The index is written last. A killed pack leaves finished shards and a hidden folder that describes
them; the same command continues from there, and only this hidden folder permits replacing files in
a folder that is not a set. Refused files make their shard a little smaller; nothing else moves.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_vit.data.index_file import NO_LABEL, Index, Statistics, write_index
from ssl_vit.data.limits import MAX_PIXELS
from ssl_vit.data.order import permutation
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit_data_prep.contact_sheet import SHEET_FILE, write_contact_sheet
from ssl_vit_data_prep.finished_shards import FinishedShards, WrittenShard
from ssl_vit_data_prep.image_counts import ImageCounts, add_counts
from ssl_vit_data_prep.inspection import read_image_file
from ssl_vit_data_prep.layout import count_of, list_some
from ssl_vit_data_prep.plan import PackPlan, digest, plan_shards
from ssl_vit_data_prep.reencode import reencode
from ssl_vit_data_prep.refusals import REFUSED_FILE, Kind, Refusal, count_kinds, write_refused
from ssl_vit_data_prep.sampling import survey_files
from ssl_vit_data_prep.scan import ImageFile, find_images
from ssl_vit_data_prep.selection import select
from ssl_vit_data_prep.shard_writer import PackOptions, ShardTask, split_pages, write_shard
from ssl_vit_data_prep.statistics import add_all
from ssl_vit_data_prep.survey import (
    Survey,
)
from ssl_vit_data_prep.target import (
    check_no_set,
    check_outside,
    check_space,
    check_target,
    remove_partials,
    remove_set,
)
from ssl_vit_data_prep.workers import run_tasks

# Number of images re-encoded to estimate sizes before shards are planned.
_TRIED = 48


@dataclass(frozen=True)
class PackedSet:
    """One packed set."""

    name: str
    """Name of its sub-folder; empty for none."""
    num_images: int
    num_shards: int
    num_bytes: int
    class_counts: dict[str, int]
    """Class → number of images, in class order; empty if there are no classes."""
    statistics: Statistics | None
    counts: ImageCounts


@dataclass(frozen=True)
class PackSummary:
    """A summary of a pack."""

    sets: tuple[PackedSet, ...]
    survey: Survey
    """The survey of the sampled images."""
    page: Literal["first", "middle", "each"]
    refused: dict[Kind, int]
    num_resumed: int
    """Shards that a killed pack had finished."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Further notes on sets and classes."""

    @property
    def num_images(self) -> int:
        """Number of images in all sets."""
        return sum(each.num_images for each in self.sets)


def pack_images(
    images: Path,
    folder: Path,
    options: PackOptions | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> PackSummary:
    """Pack an image folder into a folder of shards.

    Args:
        images: The images, in any depth of sub-folders.
        folder: Created; must be new, empty or left by a killed pack.
        options: By default with the first-level sub-folders as classes.
        workers: Number of processes; it does not change a byte.
        overwrite: Replace an existing set of shards.

    Raises:
        UserError: No images, none that can be read, or a target that may not or cannot be written.
    """
    start = time.perf_counter()
    options = options or PackOptions()
    check_outside(folder, images)
    check_target(folder, overwrite)
    chosen = select(find_images(images), images, options)
    files = chosen.files
    surveyed = survey_files(images, files, options, workers)
    values = surveyed.values
    settings = (options, chosen.classes, chosen.division, values)
    finished = FinishedShards(folder, "pack", digest(files, settings))
    if not finished.is_unfinished():
        check_no_set(folder, overwrite)
        finished.check_none_finished(overwrite)
    ratio = _size_ratio(images, files, options, values)
    before = options.shard_bytes / ratio
    plan = plan_shards(files, chosen.classes, before, options.shuffle_seed, chosen.division)
    try:
        with finished.open() as resumes:
            num_resumed = finished.count()
            check_space(folder, int(plan.num_bytes * ratio))
            remove_partials(folder) if resumes else remove_set(folder)
            tasks = _make_tasks(images, folder, plan, options, finished, values)
            sets, refused = _write_sets(folder, plan, tasks, chosen.refused, workers)
            finished.remove()
    except OSError as error:
        raise UserError(
            f"cannot write shards into {folder}: {error.strerror or error}",
            "check permissions and free space there, then run the same command again to resume",
        ) from None
    return PackSummary(
        sets,
        surveyed,
        options.page,
        count_kinds(refused),
        num_resumed,
        time.perf_counter() - start,
        (*chosen.notes, *_set_notes(plan, sets)),
    )


def check_ranges(val_fraction: float, max_pixels: int) -> None:
    """Refuse options that are out of range.

    Raises:
        UserError: One is.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(
            f"--val-fraction {val_fraction:g} is out of range", "allowed: 0 <= fraction < 1"
        )
    if max_pixels > MAX_PIXELS:
        raise UserError(
            f"--max-pixels {max_pixels} is more than training accepts",
            f"allowed: at most {MAX_PIXELS}",
        )


def _write_sets(
    folder: Path,
    plan: PackPlan,
    tasks: Sequence[ShardTask],
    refused: Sequence[Refusal],
    workers: int,
) -> tuple[tuple[PackedSet, ...], list[Refusal]]:
    """Write all shards and every set's index; returns the sets and all refused files.

    Args:
        refused: Files that were refused before.

    Raises:
        UserError: All images were refused.
    """
    num_files = sum(len(task.samples) for task in tasks)
    results = run_tasks(write_shard, tasks, num_files, workers, "packing")
    all_refused = [*refused, *(each for result in results for each in result.refused)]
    write_refused(folder, all_refused)
    if not any(len(result.records) for result in results):
        raise UserError(
            f"none of the {num_files} files in {tasks[0].images} is a readable image",
            f"the reasons are in {folder / REFUSED_FILE}",
        )
    return _finish(folder, plan, tasks, results), all_refused


def _finish(
    folder: Path,
    plan: PackPlan,
    tasks: Sequence[ShardTask],
    results: Sequence[WrittenShard],
) -> tuple[PackedSet, ...]:
    """Write every set's index."""
    by_set: dict[str, list[WrittenShard]] = {name: [] for name in plan.sets}
    for task, result in zip(tasks, results, strict=True):
        by_set[task.set_name].append(result)
    return tuple(
        finish_set(name, folder / name, plan.classes, its_results, tasks[0].values)
        for name, its_results in by_set.items()
    )


def _set_notes(plan: PackPlan, sets: Sequence[PackedSet]) -> list[str]:
    """Notes on empty sets, and on classes that not all sets have."""
    notes = []
    for each in sets:
        if not each.num_images and not plan.sets[each.name]:
            notes.append(f"{each.name} is empty: use a larger --val-fraction")
        elif not each.num_images:
            notes.append(f"{each.name} is empty: all its images were refused")
    counts = {each.name: each.class_counts for each in sets}
    of_train = counts.pop("train", {})
    for name, its in counts.items() if of_train else ():
        new = [label for label, count in its.items() if count and not of_train[label]]
        if new:
            number = count_of(len(new), "class", "classes")
            notes.append(f"{number} in {name}, not in train: {list_some(new)}")
    if empty := [
        label for label in plan.classes if not any(each.class_counts[label] for each in sets)
    ]:
        notes.append(
            f"{count_of(len(empty), 'class', 'classes')} without images: {list_some(empty)}"
        )
    return notes


def finish_set(
    name: str,
    folder: Path,
    classes: Sequence[str],
    results: Sequence[WrittenShard],
    values: ValueRange | None,
) -> PackedSet:
    """Write the contact sheet and, last, the index of a set whose shards are all finished.

    Args:
        name: Name of its sub-folder, for the summary.
        folder: Folder of its shards.
        classes: Names of the classes.
        results: Its shards, in order.
        values: How values of more than 8 bits are shown.
    """
    filled = [result for result in results if len(result.records)]
    folder.mkdir(parents=True, exist_ok=True)
    if pictures := [picture for result in filled for picture in result.sheet]:
        title = f"more than 8 bits: {values.describe()}" if values else ""
        write_contact_sheet(folder / SHEET_FILE, pictures, title)
    statistics = add_all(result.sums for result in filled).statistics()
    shards = tuple(result.shard for result in filled)
    labels = np.concatenate([result.records["label"] for result in filled] or [np.zeros(0, int)])
    counts = np.bincount(labels[labels != NO_LABEL], minlength=len(classes))
    if filled:
        groups = tuple(group for result in filled for group in result.groups)
        index = Index(shards, tuple(classes), statistics, values, groups=groups)
        write_index(folder, index, [result.records for result in filled])
    return PackedSet(
        name,
        num_images=len(labels),
        num_shards=len(shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        class_counts={label: int(counts[number]) for number, label in enumerate(classes)},
        statistics=statistics,
        counts=add_counts(result.counts for result in filled),
    )


def _size_ratio(
    images: Path, files: Sequence[ImageFile], options: PackOptions, values: ValueRange | None
) -> float:
    """Size of a packed image over that of its file, estimated on a few, for planning shards."""
    if not options.reencoding.short_side and options.page == "first":
        return 1.0
    before = after = 0
    for place in permutation(len(files), options.shuffle_seed)[:_TRIED]:
        try:
            data, facts = read_image_file(
                images / files[place].path, options.max_pixels, values=values
            )
            pages = split_pages(data, "", facts.num_pages, options.page)
            after += sum(
                len(reencode(page, ending, options.reencoding, values)[0])
                for _, page, ending in pages
            )
            before += len(data)
        except ValueError:
            continue  # refused when it is packed
    return after / before if before else 1.0


def _make_tasks(
    images: Path,
    folder: Path,
    plan: PackPlan,
    options: PackOptions,
    finished: FinishedShards,
    values: ValueRange | None,
) -> list[ShardTask]:
    return [
        ShardTask(
            images,
            folder / set_name / f"shard-{number:06d}.tar",
            samples,
            plan.classes,
            options,
            finished,
            set_name,
            values,
        )
        for set_name, shards in plan.sets.items()
        for number, samples in enumerate(shards)
    ]
