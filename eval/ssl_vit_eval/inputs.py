"""What an evaluation is given, checked at the door without torch, so that mistakes cost nothing."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_vit.data.labels import check_labels, labelled_numbers
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.distributed import cores_here
from ssl_vit.errors import UserError
from ssl_vit.export import WEIGHTS_FILE, ExportInfo, find_export, read_export_info
from ssl_vit.run_folder import RunFolder

# The smallest k of the k-NN protocol, and the least of which a tenth can be held out.
MIN_IMAGES = 10
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Inputs:
    """An export and two labelled shard sets that fit each other."""

    export: Path
    """Folder of the export."""
    info: ExportInfo
    train: ShardSet
    test: ShardSet
    evals: Path
    """Folder the result is written to."""
    crop_ratio: float
    """Side of the centre crop over the image's shorter side, in (0, 1]."""
    batch_size: int | None
    """Images a forward pass; None for the device's own."""
    workers: int
    """Processes that decode."""
    device: str
    """`auto`, `cpu`, `cuda` or `cuda:NUMBER`."""

    @property
    def num_classes(self) -> int:
        """C, the classes the two sets share."""
        return len(self.train.classes)


def check_inputs(
    run: Path,
    train: str,
    test: str,
    crop_ratio: float,
    batch_size: int | None,
    workers: int | None,
    device: str,
) -> Inputs:
    """Open everything an evaluation reads.

    Args:
        run: A run folder (its newest export counts) or an export folder.
        train, test: Shards whose images have labels; a folder or a URL.
        crop_ratio: Side of the centre crop over the image's shorter side.
        batch_size: None for the device's own.
        workers: None for one a core but one, at least 1, at most 8.

    Raises:
        UserError: A crop ratio outside (0, 1]; no export; shards missing, unlabelled, too few, of
            other classes, or the same set twice; a device of no known name; a place for results
            that cannot be written.
    """
    if not _DEVICE.fullmatch(device):
        raise UserError(f"--device {device} is unknown", "use auto, cpu, cuda or cuda:NUMBER")
    if not 0 < crop_ratio <= 1:
        raise UserError(
            f"--crop-ratio {crop_ratio:g} is out of range", "allowed: 0 < crop ratio <= 1"
        )
    export = find_export(run)
    info = read_export_info(export)
    if not (export / WEIGHTS_FILE).is_file():
        raise UserError(f"{export} has no {WEIGHTS_FILE}", "export again")
    train_shards, test_shards = open_shards(train), open_shards(test)
    check_labels(train_shards, MIN_IMAGES)
    check_labels(test_shards, MIN_IMAGES)
    _check_pair(train_shards, test_shards)
    evals = _evals_folder(export)
    try:
        evals.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write results to {evals}: {error.strerror}", "copy the export elsewhere"
        ) from None
    if workers is None:
        workers = max(1, min(8, cores_here() - 1))
    return Inputs(
        export, info, train_shards, test_shards, evals, crop_ratio, batch_size, workers, device
    )


def _check_pair(train: ShardSet, test: ShardSet) -> None:
    if train.classes != test.classes:
        raise UserError(
            f"--train and --test differ in their classes: {_difference(train, test)}",
            "pack both from folders with the same sub-folders",
        )
    if len(np.unique(train.labels[labelled_numbers(train)])) < 2:
        raise UserError(
            f"all labelled images of {train.source} are of one class", "give a set with two or more"
        )
    if train.fingerprint == test.fingerprint:
        raise UserError(
            f"--train {train.source} and --test {test.source} are the same images",
            "give a test set of its own: accuracy on seen images says nothing",
        )


def _difference(train: ShardSet, test: ShardSet) -> str:
    only_train = [name for name in train.classes if name not in test.classes]
    only_test = [name for name in test.classes if name not in train.classes]
    parts = [
        f"only in {side}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for side, names in (("train", only_train), ("test", only_test))
        if names
    ]
    return "; ".join(parts) or "the same names in another order"


def _evals_folder(export: Path) -> Path:
    if export.resolve().parent.name == "exports":
        return RunFolder(export.resolve().parent.parent).evals
    return export / "evals"
