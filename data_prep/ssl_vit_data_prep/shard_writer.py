"""Writing one shard of a pack, in a worker process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_vit.data.decode import Picture
from ssl_vit.data.index_file import NO_LABEL, SAMPLE_RECORD, describe_shard
from ssl_vit.data.limits import MAX_PIXELS, check_file_size
from ssl_vit.data.pages import take_pages
from ssl_vit.data.raster import ImageFacts
from ssl_vit.data.values import ValueRange
from ssl_vit.files import replacing
from ssl_vit_data_prep.contact_sheet import thumbnail
from ssl_vit_data_prep.finished_shards import FinishedShards, WrittenShard
from ssl_vit_data_prep.image_counts import ImageCounts
from ssl_vit_data_prep.inspection import read_image_file, refusal_of
from ssl_vit_data_prep.manifest import Columns
from ssl_vit_data_prep.plan import NO_GROUP, PlannedSample
from ssl_vit_data_prep.reencode import Reencoding, reencode
from ssl_vit_data_prep.refusals import NO_MEMORY, Refusal, RefusedError
from ssl_vit_data_prep.statistics import PixelSums, pixels_to_measure
from ssl_vit_data_prep.tar import HashedTar
from ssl_vit_data_prep.workers import count_done

_COUNTED = 16  # images between two updates of the progress line
_MEASURED_PAGES = 16  # most pages measured of one file


@dataclass(frozen=True)
class PackOptions:
    """How to pack."""

    shard_bytes: int = 256 * 2**20
    """Largest size of a tar, unless a single sample is larger."""
    shuffle_seed: int = 0
    """Seed of the order of samples."""
    classes: Literal["folders", "none", "manifest"] = "folders"
    """Where labels come from; with `folders` an image beside the class folders has none."""
    manifest: Path | None = None
    """The manifest file, with `classes="manifest"`."""
    val_fraction: float = 0.0
    """Share of the images that goes to the set `val`, in [0, 1)."""
    reencoding: Reencoding = field(default_factory=Reencoding)
    max_pixels: int = MAX_PIXELS
    """Height × width beyond which an image is refused."""
    decodes: bool = False
    """Whether to decode every image and refuse damaged ones."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown; None: measured on a sample."""
    no_data: float | None = None
    """Value of pixels without data; None: as the files declare, or detected."""
    page: Literal["first", "middle", "each"] = "first"
    """Which page of a file that holds several is packed."""
    columns: Columns = field(default_factory=Columns)
    """Columns of the manifest."""
    split_folders: bool = True
    """Whether folders named `train`, `val` or `test` are sets."""


@dataclass(frozen=True)
class ShardTask:
    """All that a worker process needs to write one shard."""

    images: Path
    target: Path
    samples: tuple[PlannedSample, ...]
    classes: tuple[str, ...]
    options: PackOptions
    finished: FinishedShards
    set_name: str
    values: ValueRange | None
    """How values of more than 8 bits are shown; None if no sampled image has them."""

    @property
    def name(self) -> str:
        """Name under which the finished shard is saved."""
        return f"{self.set_name}{self.target.stem}"


def write_shard(task: ShardTask) -> WrittenShard:
    """Write one tar and save its description; no file if every image is refused.

    A tar that a killed pack had finished is kept.
    """
    part = task.finished.load(task.name)
    if part and (not part.shard.num_samples or _has_size(task.target, part.shard.num_bytes)):
        count_done(len(task.samples))
        return part
    task.target.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int, int]] = []
    groups: list[int] = []
    refused: list[Refusal] = []
    sums, counts = PixelSums(), ImageCounts()
    sheet: list[tuple[str, np.ndarray]] = []
    with replacing(task.target) as partial, partial.open("wb", buffering=0) as file:
        tar = HashedTar(file)
        for place, sample in enumerate(task.samples):
            try:
                images, facts = _read_images(sample, task)
                if sample.is_measured or sample.is_shown:
                    spread = images[:: -(-len(images) // _MEASURED_PAGES)]
                    pages = [data for _, data, _ in spread]
                    sums, sheet = _measure(pages, sample, task, sums, sheet)
                rows += [_add_sample(tar, each, ending, data) for each, data, ending in images]
                groups += [sample.group] * len(images)
                counts = counts.add(facts)
            except RefusedError as error:
                refused.append(Refusal(sample.path, error.kind, error.reason))
            except MemoryError:
                refused.append(Refusal(sample.path, "too large", NO_MEMORY))
            if place % _COUNTED == 0:
                count_done(min(_COUNTED, len(task.samples) - place))
        sha256 = tar.finish()
    if not rows:
        task.target.unlink()
    records = np.array(rows, dtype=SAMPLE_RECORD)
    shard = describe_shard(task.target.name, tar.num_bytes, sha256, records)
    groups = [] if NO_GROUP in groups else groups
    result = WrittenShard(shard, records, refused, sums, sheet, counts=counts, groups=groups)
    task.finished.save(task.name, result)
    return result


def _add_sample(
    tar: HashedTar, sample: PlannedSample, ending: str, data: bytes
) -> tuple[int, int, int, int]:
    """Append a sample's files; returns its record."""
    start = tar.num_bytes
    offset = tar.add(f"{sample.key}.{ending}", data)
    if sample.label != NO_LABEL:
        tar.add(f"{sample.key}.cls", str(sample.label).encode())
    if sample.extras:
        tar.add(f"{sample.key}.json", sample.extras.encode())
    return offset, len(data), offset - start, sample.label


def _read_images(
    sample: PlannedSample, task: ShardTask
) -> tuple[list[tuple[PlannedSample, bytes, str]], ImageFacts]:
    """(sample, bytes, ending) of every image packed from a file, and the facts in its header."""
    options = task.options
    data, facts = read_image_file(
        f"{task.images}/{sample.path}", options.max_pixels, options.decodes, task.values
    )
    try:
        images = []
        pages = split_pages(data, sample.ending, facts.num_pages, options.page)
        for suffix, page, ending in pages:
            check_file_size(len(page))
            small = reencode(page, ending, options.reencoding, task.values)
            images.append((replace(sample, key=sample.key + suffix), *small))
    except ValueError as error:
        raise refusal_of(error, "damaged") from None
    return images, facts


def split_pages(
    data: bytes, ending: str, num_pages: int, page: Literal["first", "middle", "each"]
) -> Iterator[tuple[str, bytes, str]]:
    """(suffix of the key, bytes, ending) of the pages that are packed; for a single or first page
    the file itself.

    Raises:
        ValueError: A page cannot be read.
    """
    if num_pages == 1 or page == "first":
        yield "", data, ending
    elif page == "middle":
        for taken in take_pages(data, [num_pages // 2]):
            yield "", *taken
    else:
        digits = len(str(num_pages))
        for number, taken in enumerate(take_pages(data, range(num_pages)), 1):
            yield f"_page_{number:0{digits}d}", *taken


def _measure(
    pages: Sequence[bytes],
    sample: PlannedSample,
    task: ShardTask,
    sums: PixelSums,
    sheet: list[tuple[str, np.ndarray]],
) -> tuple[PixelSums, list[tuple[str, np.ndarray]]]:
    """The statistics with the pages of one more file, and the sheet with its middle page."""
    for place, data in enumerate(pages):
        is_shown = sample.is_shown and place == len(pages) // 2
        if not (sample.is_measured or is_shown):
            continue
        try:
            pixels = pixels_to_measure(Picture(data, task.values))
        except ValueError as error:
            raise refusal_of(error, "damaged") from None
        if sample.is_measured:
            sums = sums.add(pixels)
        if is_shown:
            caption = sample.key if sample.label == NO_LABEL else task.classes[sample.label]
            sheet = [*sheet, (caption, thumbnail(pixels))]
    return sums, sheet


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
