"""Descriptions of finished shards, kept until the whole set is done, so that a killed command can
resume.

A hidden folder beside the shards holds one file per finished shard; it belongs to one plan, named
by its digest, and is deleted at the end.
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
    """One finished shard."""

    shard: Shard
    records: np.ndarray
    """(num_samples,) of ``SAMPLE_RECORD``."""
    refused: list[Refusal] = field(default_factory=list)
    sums: PixelSums = field(default_factory=PixelSums)
    sheet: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """(caption, (S, S, 3) uint8) of pictures for the contact sheet."""
    labels: list[str] = field(default_factory=list)
    """Texts of the records' labels, if classes are numbered only after all shards are read."""
    endings: dict[str, int] = field(default_factory=dict)
    """Ending → number of images, in an indexed shard."""
    saw: dict[str, dict[str, int]] = field(default_factory=dict)
    """Further counts in an indexed shard, by topic: see ``IndexSummary.saw``."""
    counts: ImageCounts = field(default_factory=ImageCounts)
    """Properties of its images; in an indexed shard, of those that were sampled."""
    looks: list[Look] = field(default_factory=list)
    """The sampled images of an indexed shard."""
    groups: list[int] = field(default_factory=list)
    """Group of each record; empty if there are none."""


class FinishedShards:
    """The finished shards of one unfinished command.

    Args:
        folder: The set's folder.
        command: pack, reshard or index.
        plan: Digest of everything that determines the output.
    """

    def __init__(self, folder: Path, command: str, plan: str) -> None:
        self.folder, self.plan = folder / UNFINISHED_FOLDER, f"{command} {plan}"

    def is_unfinished(self) -> bool:
        """Whether a command with the same plan began here and did not finish."""
        return _read_plan(self.folder) == self.plan

    def check_none_finished(self, overwrite: bool) -> None:
        """Refuse to discard shards that a command with another plan has finished here.

        Raises:
            UserError: There are some, and they may not be replaced.
        """
        if overwrite or not self.count():
            return
        command, folder = unfinished_command(self.folder.parent), self.folder.parent
        raise UserError(
            f"{folder} has {self.count():,} finished shards of an interrupted {command} with other "
            "options or other images",
            "run the command that began it again to resume, or add --overwrite to start over",
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[bool]:
        """Lock the folder for this process while the block runs.

        Yields:
            Whether there may be finished shards of the same plan.

        Raises:
            UserError: Another process has locked it.
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
            resumes = self.is_unfinished()
            if not resumes:
                for path in self.folder.glob("*.npz"):
                    path.unlink()
                with replacing(self.folder / _PLAN) as partial:
                    partial.write_text(self.plan)
            try:
                yield resumes
            except BaseException:
                if not self.count():
                    self.remove()  # nothing to resume from
                raise

    def count(self) -> int:
        """Number of finished shards."""
        return sum(1 for _ in self.folder.glob("*.npz"))

    def remove(self) -> None:
        """Remove the folder: the set is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, name: str, part: WrittenShard) -> None:
        """Save the description of a finished shard."""
        described = {
            "shard": asdict(part.shard),
            "refused": [asdict(refusal) for refusal in part.refused],
            "captions": [caption for caption, _ in part.sheet],
            "labels": part.labels,
            "endings": part.endings,
            "saw": part.saw,
            "counts": part.counts.to_plain(),
            "groups": part.groups,
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
        """The description of a finished shard; None if there is none that can be read."""
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
                    described["groups"],
                )
        except Exception:  # numpy's and zipfile's readers of damaged files raise many kinds
            return None


def unfinished_command(folder: Path) -> str:
    """The command that began to write into this folder and did not finish; empty for none."""
    return _read_plan(folder / UNFINISHED_FOLDER).partition(" ")[0]


def _read_plan(folder: Path) -> str:
    plan = folder / _PLAN
    return plan.read_text() if plan.is_file() else ""
