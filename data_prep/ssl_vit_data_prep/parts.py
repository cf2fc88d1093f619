"""What finished shards were like, kept until the whole set is done, so that a killed command goes
on where it stopped.

A hidden folder beside the shards holds one file a finished shard; it belongs to one plan, named by
its digest, and is deleted with the last step.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ssl_vit.data.index_file import UNFINISHED_FOLDER, Shard
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit_data_prep.image_counts import ImageCounts
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.statistics import PixelSums
from ssl_vit_data_prep.survey import Look

_PLAN, _LOCK = "plan", "lock"


@dataclass(frozen=True)
class WrittenShard:
    """One shard as it came out."""

    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    refused: list[Refusal] = field(default_factory=list)
    sums: PixelSums = field(default_factory=PixelSums)
    sheet: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """(caption, (S, S, 3) uint8) of pictures for the contact sheet."""
    labels: list[str] = field(default_factory=list)
    """What the records' labels mean, where classes are numbered only when all shards are read."""
    endings: dict[str, int] = field(default_factory=dict)
    """How many images have which ending, where others wrote the shard."""
    saw: dict[str, dict[str, int]] = field(default_factory=dict)
    """What else was counted there, by topic: see ``ssl_vit_data_prep.index``."""
    counts: ImageCounts = field(default_factory=ImageCounts)
    """What its images are like; where others wrote the shard, those that were sampled."""
    looks: list[Look] = field(default_factory=list)
    """At its sampled images, where others wrote the shard."""


class Parts:
    """The finished shards of one unfinished command.

    Args:
        folder: The set's.
        command: Whose: pack, reshard or index.
        plan: Digest of all that decides what is written.
    """

    def __init__(self, folder: Path, command: str, plan: str) -> None:
        self.folder, self.plan = folder / UNFINISHED_FOLDER, f"{command} {plan}"

    def is_unfinished(self) -> bool:
        """Whether a command of the same plan began here and did not end."""
        return _read_plan(self.folder) == self.plan

    def check_none_finished(self, overwrite: bool) -> None:
        """Refuse to throw away what a command of another plan has finished here.

        Raises:
            UserError: There is some, and it may not be replaced.
        """
        if overwrite or not self.count():
            return
        command, folder = unfinished_command(self.folder.parent), self.folder.parent
        raise UserError(
            f"{folder} holds {self.count():,} finished shards of a {command} that did not end, "
            "with other options or of other images",
            "the command that began it goes on there; --overwrite begins anew",
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[bool]:
        """Take the folder for this process, as long as the block runs.

        Yields:
            Whether finished shards of the same plan are there.

        Raises:
            UserError: Another process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(
                    f"another process is writing into {self.folder.parent}",
                    "wait for it, or choose another folder",
                ) from None
            except OSError:
                pass  # a file system without locks
            goes_on = self.is_unfinished()
            if not goes_on:
                for path in self.folder.glob("*.npz"):
                    path.unlink()
                with replacing(self.folder / _PLAN) as partial:
                    partial.write_text(self.plan)
            try:
                yield goes_on
            except BaseException:
                if not self.count():
                    self.remove()  # nothing to go on from
                raise

    def count(self) -> int:
        """Finished shards."""
        return sum(1 for _ in self.folder.glob("*.npz"))

    def remove(self) -> None:
        """The set is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, name: str, part: WrittenShard) -> None:
        """Remember a finished shard."""
        described = {
            "shard": asdict(part.shard),
            "refused": [asdict(refusal) for refusal in part.refused],
            "captions": [caption for caption, _ in part.sheet],
            "labels": part.labels,
            "endings": part.endings,
            "saw": part.saw,
            "counts": part.counts.to_plain(),
            "looks": [asdict(replace(look, values=None)) for look in part.looks],
        }
        pictures = [picture for _, picture in part.sheet]
        with replacing(self.folder / f"{name}.npz") as partial, partial.open("wb") as file:
            np.savez(
                file,
                described=np.frombuffer(json.dumps(described).encode(), dtype=np.uint8),
                records=part.records,
                sums=part.sums.as_array(),
                sheet=np.stack(pictures) if pictures else np.zeros(0, np.uint8),
                allow_pickle=False,
                **{f"values_{place}": look.values for place, look in enumerate(part.looks)},
            )

    def load(self, name: str) -> WrittenShard | None:
        """A finished shard; None where there is none that can be read."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                described = json.loads(file["described"].tobytes())
                return WrittenShard(
                    Shard(**described["shard"]),
                    file["records"],
                    [Refusal(**refusal) for refusal in described["refused"]],
                    PixelSums.of_array(file["sums"]),
                    list(zip(described["captions"], file["sheet"], strict=True)),
                    described["labels"],
                    described["endings"],
                    described["saw"],
                    ImageCounts.of_plain(described["counts"]),
                    [
                        Look(**{**look, "values": file[f"values_{place}"]})
                        for place, look in enumerate(described["looks"])
                    ],
                )
        except Exception:  # numpy's and zipfile's readers of damaged files raise many kinds
            return None


def unfinished_command(folder: Path) -> str:
    """Which command began to write into this folder and did not end; empty for none."""
    return _read_plan(folder / UNFINISHED_FOLDER).partition(" ")[0]


def _read_plan(folder: Path) -> str:
    plan = folder / _PLAN
    return plan.read_text() if plan.is_file() else ""
