"""The summaries that `ssl-vit shards` prints."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.errors import one_line
from ssl_vit.units import format_bytes
from ssl_vit_data_prep.class_names import describe_missing
from ssl_vit_data_prep.image_counts import add_counts
from ssl_vit_data_prep.layout import count_of, list_some

if TYPE_CHECKING:
    from ssl_vit.data.index_file import Statistics
    from ssl_vit.data.values import ValueRange
    from ssl_vit_data_prep.image_counts import ImageCounts
    from ssl_vit_data_prep.index import IndexSummary
    from ssl_vit_data_prep.pack import PackSummary
    from ssl_vit_data_prep.refusals import Kind
    from ssl_vit_data_prep.survey import Survey

_CLASSES = 5  # listed, the largest first


def echo_packed(made: "PackSummary", shards: Path, decoded: bool) -> None:
    """Print what a pack made, the next command, and how many images were not decoded; all were if
    ``decoded``, otherwise only those measured for the statistics.
    """
    resumed = f", {count_shards(made.num_resumed)} resumed" if made.num_resumed else ""
    for each in made.sets:
        _say(
            f"packed   {count_of(each.num_images, 'image')} into {count_shards(each.num_shards)}, "
            f"{format_bytes(each.num_bytes)}: {shards / each.name}"
        )
        _say(f"classes  {_describe_classes(each.class_counts, each.num_images)}")
        if each.statistics:
            _say(f"pixels   {_describe_statistics(each.statistics)}")
        if each.num_images:
            _say(f"images   {each.counts.describe()}")
    echo_range(made.survey)
    counted = add_counts(each.counts for each in made.sets).notes(made.page)
    for note in (*made.notes, *counted):
        _say(f"note     {note}")
    echo_refused(made.refused, shards)
    rate = made.num_images / made.seconds
    _say(f"time     {made.seconds:.1f} s ({rate:,.0f} images/s){resumed}")
    first = next(each for each in made.sets if each.num_images)
    _say(f"look     {shards / first.name / 'contact_sheet.png'}")
    word = shlex.quote(f"data.shards={shards / first.name}")
    _say(f"next     ssl-vit pretrain mae_small_data --run RUN {word}")
    looked_at = sum(each.statistics.num_images for each in made.sets if each.statistics)
    if not decoded and looked_at < made.num_images:
        _say(
            f"note     {made.num_images - looked_at:,} images were checked without decoding; "
            "--decode, or  ssl-vit shards check,  finds damage inside them"
        )


def echo_sampled(made: "IndexSummary") -> None:
    """Print the properties of an index's sampled images."""
    _say(f"images   {made.counts.describe()} (of {made.survey.num_images:,} sampled)")
    echo_range(made.survey)
    for note in made.counts.notes(None):
        _say(f"note     in the sample: {note}")
    if unreadable := made.survey.num_images - made.counts.counts["images"]:
        _say(f"WARNING  {unreadable:,} sampled images cannot be read: ssl-vit shards check")


def echo_checked(counts: "ImageCounts", values: "ValueRange | None") -> None:
    """Print the properties of a checked set's images."""
    _say(f"images   {counts.describe()}")
    if values:
        _say(f"range    more than 8 bits: {values.describe()}")
    for note in counts.notes(None):
        _say(f"note     {note}")


def echo_range(surveyed: "Survey") -> None:
    """Print the value range of a set, with notes and warnings."""
    if surveyed.values:
        _say(f"range    more than 8 bits: {surveyed.values.describe()}")
    for note in surveyed.notes:
        is_warning = note.startswith("warning: ")
        _say(f"{'WARNING ' if is_warning else 'note    '} {note.removeprefix('warning: ')}")


def echo_labels(made: "IndexSummary") -> None:
    """Print an index's labels, or where there might be some, and the texts that mean "no label"."""
    total, classes = made.index.num_samples, made.index.classes
    if made.num_labeled:
        number = count_of(len(classes), "class", "classes")
        labels = f"{count_of(made.num_labeled, 'image')} of {number}: {list_some(classes)}"
        if unlabeled := total - made.num_labeled:
            labels += f"; {count_of(unlabeled, 'image')} without a label"
    elif made.hints:
        labels = f"none: {made.hints[0]}"
    else:
        labels = "none"
    _say(f"labels   {labels}")
    for hint in made.hints[1:]:
        _say(f"note     {hint}")
    if missing := describe_missing(made.saw["missing"]):
        _say(f"note     read as no label: {missing}")
    if made.merged:
        _say(f"note     other notations of the same number: {list_some(made.merged)}")
    if repeated := made.saw["repeated"].get("", 0):
        _say(
            f"note     {count_of(repeated, 'file')} with the same name as an earlier one in the "
            "tar; images among them count, though tar unpacks only the last"
        )


def _say(line: str) -> None:
    """Print one line; names of classes and folders may contain any characters."""
    print(one_line(line))


def count_shards(count: int) -> str:
    """ "1 shard", "2,000 shards"."""
    return count_of(count, "shard")


def _describe_classes(counts: "Mapping[str, int]", num_images: int) -> str:
    if not counts:
        return "none"
    largest = sorted(counts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {count:,}" for name, count in largest[:_CLASSES])
    more = f", and {len(counts) - _CLASSES:,} more" if len(counts) > _CLASSES else ""
    if none_of := sum(not count for count in counts.values()):
        more += f"; {none_of:,} of them without images in this set"
    if unlabeled := num_images - sum(counts.values()):
        more += f"; {count_of(unlabeled, 'image')} without a label"
    return f"{len(counts):,}: {listed}{more}"


def _describe_statistics(statistics: "Statistics") -> str:
    mean, std = (
        "[" + ", ".join(f"{value:.3f}" for value in values) + "]"
        for values in (statistics.mean, statistics.std)
    )
    return f"mean {mean}, std {std}, of {statistics.num_images:,} images"


def echo_refused(counts: "Mapping[Kind, int]", folder: Path) -> None:
    """Print how many files were refused, by kind, and where they are listed."""
    if joined := counts.get("behind the end mark"):
        _say(
            f"WARNING  {count_of(joined, 'tar')} with data after the end mark, probably tars "
            "joined by cat; this data is not indexed"
        )
    if counts:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
        listed = f"listed in {folder / 'refused.jsonl'}"
        _say(f"refused  {count_of(sum(counts.values()), 'file')}, {listed}: {kinds}")
