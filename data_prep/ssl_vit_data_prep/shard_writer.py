"""One shard of a pack: what a worker process does with its share of the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_vit.data.decode import MAX_PIXELS, Picture
from ssl_vit.data.index_file import NO_LABEL, SAMPLE_RECORD, describe_shard
from ssl_vit.files import replacing
from ssl_vit_data_prep.contact_sheet import thumbnail
from ssl_vit_data_prep.inspection import read_image_file
from ssl_vit_data_prep.manifest import Columns
from ssl_vit_data_prep.parts import Parts, WrittenShard
from ssl_vit_data_prep.plan import PlannedSample
from ssl_vit_data_prep.reencode import Reencoding, reencode
from ssl_vit_data_prep.refusals import Refusal, RefusedError
from ssl_vit_data_prep.statistics import PixelSums, pixels_to_measure
from ssl_vit_data_prep.tar import HashedTar
from ssl_vit_data_prep.workers import count_done

_COUNTED = 16  # images between two words to the progress line


@dataclass(frozen=True)
class PackOptions:
    """How to pack."""

    shard_bytes: int = 256 * 2**20
    """Size that a tar does not exceed, unless a single sample does."""
    shuffle_seed: int = 0
    """Of the order of samples."""
    classes: Literal["folders", "none", "manifest"] = "folders"
    """Where labels come from; with `folders` an image beside the class folders has none."""
    manifest: Path | None = None
    """With `classes="manifest"`."""
    val_fraction: float = 0.0
    """Share of the images that becomes a set of its own, in [0, 1)."""
    reencoding: Reencoding = field(default_factory=Reencoding)
    max_pixels: int = MAX_PIXELS
    """Height × width beyond which an image is refused."""
    decodes: bool = False
    """Decode every image, and refuse the damaged."""
    columns: Columns = field(default_factory=Columns)
    """Of the manifest."""
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
    parts: Parts
    set_name: str

    @property
    def name(self) -> str:
        """Of its part."""
        return f"{self.set_name}{self.target.stem}"


def write_shard(task: ShardTask) -> WrittenShard:
    """Write one tar and remember it; no file if every image is refused.

    One that a killed pack had finished is left as it is.
    """
    part = task.parts.load(task.name)
    if part and (not part.shard.num_samples or _has_size(task.target, part.shard.num_bytes)):
        count_done(len(task.samples))
        return part
    task.target.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int, int]] = []
    refused: list[Refusal] = []
    sums = PixelSums()
    sheet: list[tuple[str, np.ndarray]] = []
    with replacing(task.target) as partial, partial.open("wb", buffering=0) as file:
        tar = HashedTar(file)
        for place, sample in enumerate(task.samples):
            try:
                data = read_image_file(
                    f"{task.images}/{sample.path}", task.options.max_pixels, task.options.decodes
                )
                data, ending = _reencode(data, sample, task.options)
                if sample.is_measured or sample.is_shown:
                    sums, sheet = _measure(data, sample, task.classes, sums, sheet)
                rows.append(_add_sample(tar, sample, ending, data))
            except RefusedError as error:
                refused.append(Refusal(sample.path, error.kind, error.reason))
            if place % _COUNTED == 0:
                count_done(min(_COUNTED, len(task.samples) - place))
        sha256 = tar.finish()
    if not rows:
        task.target.unlink()
    records = np.array(rows, dtype=SAMPLE_RECORD)
    shard = describe_shard(task.target.name, tar.num_bytes, sha256, records)
    result = WrittenShard(shard, records, refused, sums, sheet)
    task.parts.save(task.name, result)
    return result


def _add_sample(
    tar: HashedTar, sample: PlannedSample, ending: str, data: bytes
) -> tuple[int, int, int, int]:
    """Append a sample's files; its record."""
    start = tar.num_bytes
    offset = tar.add(f"{sample.key}.{ending}", data)
    if sample.label != NO_LABEL:
        tar.add(f"{sample.key}.cls", str(sample.label).encode())
    if sample.extras:
        tar.add(f"{sample.key}.json", sample.extras.encode())
    return offset, len(data), offset - start, sample.label


def _reencode(data: bytes, sample: PlannedSample, options: PackOptions) -> tuple[bytes, str]:
    try:
        return reencode(data, sample.ending, options.reencoding)
    except ValueError as error:
        raise RefusedError("damaged", str(error)) from None


def _measure(
    data: bytes,
    sample: PlannedSample,
    classes: Sequence[str],
    sums: PixelSums,
    sheet: list[tuple[str, np.ndarray]],
) -> tuple[PixelSums, list[tuple[str, np.ndarray]]]:
    """The statistics and the sheet with one more image."""
    try:
        picture = Picture(data)
        pixels = pixels_to_measure(picture)
    except ValueError as error:
        raise RefusedError("damaged", str(error)) from None
    if sample.is_measured:
        sums = sums.add(pixels)
    if sample.is_shown:
        caption = sample.key if sample.label == NO_LABEL else classes[sample.label]
        sheet = [*sheet, (caption, thumbnail(pixels))]
    return sums, sheet


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
