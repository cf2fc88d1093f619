"""The inputs of an evaluation, checked without torch so that mistakes are reported at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssl_vit.data.labels import check_labels
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.values import ValueRange
from ssl_vit.distributed import cores_here
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import WEIGHTS_FILE, ExportInfo, find_export, read_export_info
from ssl_vit.run.folder import RunFolder
from ssl_vit_eval.classes import MatchedClasses, match_classes

# The smallest k of the k-NN protocol, and the fewest images of which a tenth can be held out.
MIN_IMAGES = 10
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class EvaluationOptions:
    """A protocol's requirements on labels and values."""

    known_only: bool = False
    """Leave out test images of classes without train images, which are refused otherwise."""
    largest_k: int = 0
    """The largest given number of neighbors; 0 if none is given."""
    holds_out: bool = False
    """Whether a part of train is held out for choosing settings."""
    values: ValueRange | None = None
    """How values of more than 8 bits are shown, for an export without a value range."""


@dataclass(frozen=True)
class Reading:
    """How images are read and where the network computes."""

    crop_ratio: float
    """Side of the center crop over the image's shorter side, in (0, 1]."""
    batch_size: int | None
    """Images per forward pass; None for the device's default."""
    workers: int
    """Decoding processes."""
    device: str
    """`auto`, `cpu`, `cuda` or `cuda:NUMBER`."""

    @classmethod
    def checked(
        cls, crop_ratio: float, batch_size: int | None, workers: int | None, device: str
    ) -> "Reading":
        """From a command line; ``workers`` is one for each core except one by default, at most 8.

        Raises:
            UserError: A crop ratio outside (0, 1], or an unknown device.
        """
        if not _DEVICE.fullmatch(device):
            raise UserError(f"--device {device} is unknown", "use auto, cpu, cuda or cuda:NUMBER")
        if not 0 < crop_ratio <= 1:
            raise UserError(
                f"--crop-ratio {crop_ratio:g} is out of range", "allowed: 0 < crop ratio <= 1"
            )
        if workers is None:
            workers = max(1, min(8, cores_here() - 1))
        return cls(crop_ratio, batch_size, workers, device)


@dataclass(frozen=True)
class Inputs:
    """An export and two matching labeled shard sets."""

    export: Path
    """Folder of the export."""
    info: ExportInfo
    train: ShardSet
    test: ShardSet
    classes: MatchedClasses
    """The images that are used, and their classes."""
    values: ValueRange | None
    """How values of more than 8 bits are shown."""
    notes: tuple[str, ...]
    """Notes on the value range."""
    evals: Path
    """Folder of the result."""
    reading: Reading

    @property
    def num_classes(self) -> int:
        """C, the number of classes with train images."""
        return len(self.classes.names)


def check_inputs(
    run: Path,
    train: str,
    test: str,
    crop_ratio: float,
    batch_size: int | None,
    workers: int | None,
    device: str,
    options: EvaluationOptions = EvaluationOptions(),
) -> Inputs:
    """Open everything an evaluation reads.

    Args:
        run: A run folder (its newest export is used) or an export folder.
        train, test: Labeled shards, a folder or a URL.
        crop_ratio: Side of the center crop over the image's shorter side.
        batch_size: None for the device's default.
        workers: None for one per core except one, at least 1, at most 8.
        options: Requirements on labels and values.

    Raises:
        UserError: A crop ratio outside (0, 1]; no export; shards missing, unlabeled, too few, of
            other classes, or the same set twice; k larger than the train set; nothing to hold out;
            an unknown device; or the results cannot be written.
    """
    reading = Reading.checked(crop_ratio, batch_size, workers, device)
    export = find_export(run)
    info = read_export_info(export)
    if not (export / WEIGHTS_FILE).is_file():
        raise UserError(f"{export} has no {WEIGHTS_FILE}", "export again")
    train_shards, test_shards = open_shards(train), open_shards(test)
    check_labels(train_shards, min(MIN_IMAGES, options.largest_k or MIN_IMAGES))
    check_labels(test_shards, MIN_IMAGES)
    classes = _match(train_shards, test_shards, options)
    sides = [("--train", train_shards), ("--test", test_shards)]
    values, notes = range_of(info, sides, options.values)
    evals = make_evals_folder(export)
    sets = (train_shards, test_shards, classes, values, notes)
    return Inputs(export, info, *sets, evals, reading)


def range_of(
    info: ExportInfo, sides: Sequence[tuple[str, ShardSet]], given: ValueRange | None
) -> tuple[ValueRange | None, tuple[str, ...]]:
    """The value range with which the network was trained, never that of the evaluated images; and
    notes on it.

    Args:
        info: Description of the network.
        sides: The option and the images of each set.
        given: By the user, for an export without a value range.

    Raises:
        UserError: It is given and known, or needed and unknown.
    """
    if info.values and given:
        raise UserError(
            f"the export has the value range {info.values}, and --value-range gives another",
            "leave --value-range out: the network was trained with the export's",
        )
    indexed = [(side, shards, shards.values) for side, shards in sides if shards.values]
    values = info.values
    if given:
        absent = next((own.no_data for _, _, own in indexed if own.no_data is not None), None)
        values = replace(given, no_data=absent)
    if indexed and values is None:
        side, shards, own = indexed[0]
        raise UserError(
            f"{side} {shards.source} has images of more than 8 bits, but the export has no value "
            "range: it was trained on images of 8 bits",
            f"set the values of black and white, in their index  --value-range {own.low:g} "
            f"{own.high:g}",
        )
    used = "the export's" if info.values else "the given one"
    notes = [
        f"{side} {shards.source} was indexed with another value range, {own}; "
        f"{used}, {values}, is used."
        for side, shards, own in indexed
        if own != values
    ]
    return values, tuple(notes)


def parse_ks(text: str | None) -> tuple[int, ...]:
    """Numbers of neighbors, ascending, from `5,20`; none from None.

    Raises:
        UserError: It is not a list of whole numbers from 1 on.
    """
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,12}", word) and int(word) >= 1 for word in words):
        raise UserError(
            f"--k {text} is not a list of whole numbers of at least 1",
            "separate them by commas:  --k 5,20",
        )
    return tuple(sorted({int(word) for word in words}))


def _match(train: ShardSet, test: ShardSet, options: EvaluationOptions) -> MatchedClasses:
    if train.fingerprint == test.fingerprint:
        raise UserError(
            f"--train {train.source} and --test {test.source} are the same images",
            "use a separate test set: accuracy on train images is meaningless",
        )
    classes = match_classes(train, test, options.known_only)
    if len(classes.names) < 2:
        raise UserError(
            f"all labeled images of {train.source} are of one class",
            "use a set with two or more classes",
        )
    num_train, num_test = len(classes.train.labels), len(classes.test.labels)
    if num_test < MIN_IMAGES:
        raise UserError(
            f"{num_test} images of {test.source} are of classes in train, at least {MIN_IMAGES} "
            "are needed",
            "use a larger set",
        )
    if options.largest_k > num_train:
        raise UserError(
            f"--k {options.largest_k} is too large: {train.source} has {num_train:,} labeled "
            "images",
            f"use at most {num_train}",
        )
    if options.holds_out and np.bincount(classes.train.labels).max() < 2:
        raise UserError(
            f"no class of {train.source} has two labeled images: none can be held out to choose "
            "the learning rate",
            "use a set with two or more images of a class, or  ssl-vit eval knn … --k 1",
        )
    return classes


def make_evals_folder(export: Path) -> Path:
    """Make the folder for the results of an export: in its run folder, or in the export's own.

    Raises:
        UserError: It cannot be made.
    """
    evals = export / "evals"
    if export.resolve().parent.name == "exports":
        evals = RunFolder(export.resolve().parent.parent).evals
    try:
        evals.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write results to {evals}: {error.strerror}", "copy the export elsewhere"
        ) from None
    return evals
