"""`ssl-vit predict`: the class of every image of a folder or of shards, as a CSV."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ssl_vit.data.formats import ENDINGS
from ssl_vit.data.index_file import INDEX_FILE
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ClassifierInfo, find_export, read_classifier_info
from ssl_vit.files import replacing
from ssl_vit.progress import progress
from ssl_vit_eval.inputs import Reading, range_of

if TYPE_CHECKING:
    import torch

_COLUMNS = ("path", "class", "probability")


class Images(Protocol):
    """Images to classify, one after the other."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What stands in the column `path`."""
        ...

    def read(self, number: int) -> bytes:
        """The bytes of an image file."""
        ...


class ImageFiles:
    """The image files below a folder, in the order of their paths, or one file.

    Args:
        place: The folder, which has at least one, or the file.

    Raises:
        UserError: It has none.
    """

    def __init__(self, place: Path) -> None:
        self.files = (
            [place]
            if place.is_file()
            else sorted(
                file
                for file in place.rglob("*")
                if file.suffix[1:].lower() in ENDINGS
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(place).parts)
            )
        )
        if not self.files:
            raise UserError(
                f"no image in {place}", f"give a folder with files ending in {', '.join(ENDINGS)}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        """See :class:`Images`."""
        return str(self.files[number])

    def read(self, number: int) -> bytes:
        """See :class:`Images`."""
        return self.files[number].read_bytes()


class ShardImages:
    """The samples of a shard set, by their keys."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return self.shards.num_samples

    def name(self, number: int) -> str:
        """See :class:`Images`."""
        return self.shards.key(number)

    def read(self, number: int) -> bytes:
        """See :class:`Images`."""
        return self.shards.read(number)


class Prediction(NamedTuple):
    """What is known before anything is computed."""

    export: Path
    info: ClassifierInfo
    images: Images
    values: ValueRange | None
    out: Path
    reading: Reading
    notes: tuple[str, ...]


class Written(NamedTuple):
    """What was done."""

    classified: int
    unreadable: int
    counts: dict[str, int]
    """Images by predicted class; one that is of several counts in each."""


def check_prediction(
    model: Path, source: str, out: Path, reading: Reading, given: ValueRange | None
) -> Prediction:
    """Open everything that is read; needs no torch.

    Args:
        model: A run folder (its newest export) or an export folder.
        source: A folder of images, or shards.
        out: The CSV.
        reading: How images are read.
        given: How values of more than 8 bits are shown, for an export without a value range.

    Raises:
        UserError: The export has no classifier, no image is found, or the CSV cannot be written.
    """
    export = find_export(model)
    info = read_classifier_info(export)
    _check_out(out)
    place = Path(source)
    if place.is_file() or (place.is_dir() and not (place / INDEX_FILE).is_file()):
        images: Images = ImageFiles(place)
        values, notes = range_of(info, [], given)
    elif not place.exists() and "://" not in source and place.parent.is_dir():
        raise UserError(
            f"{source} does not exist", "give a folder of images, an image, or a folder of shards"
        )
    else:
        shards = open_shards(source)
        images = ShardImages(shards)
        values, notes = range_of(info, [("SHARDS", shards)], given)
    return Prediction(export, info, images, values, out, reading, notes)


def _check_out(out: Path) -> None:
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist", "create it")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", f"name a file:  --out {out / 'classes.csv'}")
    if out.exists() and out.suffix.lower() != ".csv":
        raise UserError(f"--out {out} exists and is not a CSV file", "choose another name")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: {out.parent} is not writable", "choose another folder")


def predict(prediction: Prediction, device: "torch.device") -> Written:
    """Classify every image and write the CSV; an image that cannot be read gets a line with the
    reason instead of a class.

    Raises:
        UserError: The CSV cannot be written.
    """
    from ssl_vit_eval.classifying import ImageClassifier

    export, info, images, values, out, reading, _ = prediction
    classify = ImageClassifier(export, info, values, reading.crop_ratio, device)
    counts, unreadable = dict.fromkeys(info.classes, 0), 0
    batch_size = reading.batch_size or classify.batch_size
    with _csv(out) as file, progress("images", len(images), "images") as advance:
        writer = csv.writer(file)
        writer.writerow((*_COLUMNS, "problem"))
        for first in range(0, len(images), batch_size):
            numbers = range(first, min(first + batch_size, len(images)))
            found = classify([_bytes_of(images, number) for number in numbers])
            for number, answer in zip(numbers, found, strict=True):
                if isinstance(answer, str):
                    unreadable += 1
                    writer.writerow((images.name(number), "", "", answer))
                    continue
                places = _places(answer, info)
                for place in places:
                    counts[info.classes[place]] += 1
                mark = info.label_separator
                said = mark.join(info.classes[place] for place in places) or mark
                sure = mark.join(f"{answer[place]:.6f}" for place in places)
                writer.writerow((images.name(number), said, sure, ""))
            advance(len(numbers))
    return Written(len(images) - unreadable, unreadable, counts)


def _places(answer: np.ndarray, info: ClassifierInfo) -> list[int]:
    """The classes of an image: the most probable one, or all that are more likely than not."""
    if info.label_separator:
        return np.flatnonzero(answer >= 0.5).tolist()
    return [int(np.argmax(answer))]


def _bytes_of(images: Images, number: int) -> bytes | str:
    try:
        return images.read(number)
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def _csv(out: Path) -> Iterator[IO[str]]:
    """A CSV that appears when it is complete."""
    try:
        with (
            replacing(out) as partial,
            partial.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file,
        ):
            yield file
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", "free some space") from None
