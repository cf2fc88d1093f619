"""Resumable checkpoints: written during training, renamed into place when complete on all ranks.

    checkpoints/step_00005000/
      rank_00000.safetensors …   each rank's state shards (training/state_shards.py)
      manifest.json              step, and size and sha256 of every file; written last

Any number of processes at any ZeRO stage can resume from one. Where a run starts from, first match
wins:

1. the newest intact checkpoint in its own run folder;
2. `resume_from`: the network of another run, or the backbone of an export (run/start.py);
3. scratch.
"""

import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.files import hash_file
from ssl_vit.foreign import Count, Document, checked, first_line, read_json
from ssl_vit.training.config import CheckpointConfig

if TYPE_CHECKING:
    from ssl_vit.training.engine import Engine

MANIFEST = "manifest.json"
FORMAT = "ssl-vit-checkpoint-3"


class FileFacts(Document):
    """Size and checksum of one checkpoint file when it was written."""

    bytes: Count
    sha256: str


class Manifest(Document):
    """The content of a `manifest.json`."""

    step: Count
    applied_updates: Count
    files: Annotated[
        dict[Annotated[str, Field(pattern=r"^rank_\d+\.safetensors$")], FileFacts],
        Field(min_length=1),
    ]


class Checkpoints:
    """The `checkpoints/` of one run folder.

    Args:
        folder: Created when the first one is saved.
        engine: Copies and loads each rank's part of the state.
        config: When to save, and which checkpoints to keep.
    """

    def __init__(self, folder: Path, engine: "Engine", config: CheckpointConfig) -> None:
        self.folder, self.engine, self.config = folder, engine, config
        self._blocked_seconds = 0.0
        self._writing: _WriterThread | None = None
        self._step = 0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps."""
        return step % self.config.every_steps == 0

    def begin(self, step: int) -> None:
        """Copy the state after ``step`` steps, and write it while training continues; every rank
        calls it.

        One checkpoint is written at a time: this waits for the previous one.
        """
        self.finish()
        began = time.perf_counter()
        partial = self._partial(step)
        if self.engine.processes.is_first:
            # Left by a run that was killed while saving; its files may be those of other ranks.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir(parents=True)
            except OSError as error:
                _print(f"cannot create {partial}: {error.strerror}")  # and writing will fail
        tensors, num_applied = self.engine.copy_state()
        self.engine.barrier()  # the folder exists now
        self._step = step
        self._writing = _WriterThread(partial, self.engine.processes.rank, tensors, num_applied)
        self._blocked_seconds += time.perf_counter() - began

    def take_blocked_seconds(self) -> float:
        """Seconds for which saving blocked training since the last call."""
        seconds, self._blocked_seconds = self._blocked_seconds, 0.0
        return seconds

    @property
    def state(self) -> tuple[bool, bool]:
        """(whether this rank is still writing, whether it failed), for a vote of all ranks."""
        if self._writing is None:
            return False, False
        return self._writing.is_alive(), self._writing.problem is not None

    def newest_step(self) -> int:
        """Number of steps made at the newest checkpoint on disk; 0 if there is none."""
        newest = newest_checkpoint(self.folder)
        return step_of(newest) if newest is not None else 0

    def settle(self, any_writes: bool, any_failed: bool) -> bool:
        """Rename a checkpoint in progress into place if all ranks are done; otherwise do nothing.

        Args:
            any_writes, any_failed: Result of the ranks' vote on their ``state``.

        Returns:
            False if a rank failed or the first rank could not complete it: that checkpoint is
            discarded, and the older ones are kept.
        """
        if self._writing is None or any_writes:
            return True
        writing, self._writing = self._writing, None
        problem = writing.problem
        if self.engine.processes.is_first:
            if not any_failed:
                try:
                    self._complete(writing.num_applied)
                except Exception as error:  # also for a damaged `.sum`: the other ranks are waiting
                    problem, any_failed = first_line(error), True
            if any_failed:
                shutil.rmtree(self._partial(self._step), ignore_errors=True)
        if problem is not None:
            _print(
                f"checkpoint step_{self._step:08d} could not be written to {self.folder}: "
                f"{problem}. Training continues and older checkpoints are kept; free disk space"
            )
        return not any_failed

    def finish(self) -> bool:
        """Wait until the checkpoint in progress is in place; every rank calls it.

        Returns:
            False if it could not be written.
        """
        if self._writing is None:
            return True
        began = time.perf_counter()
        self._writing.join()
        done = self.settle(*self.engine.any_rank(*self.state))
        failed = self.engine.any_rank(not done)[0]  # the first rank alone completes it
        self._blocked_seconds += time.perf_counter() - began
        return not failed

    def restore(self) -> int:
        """Load the newest intact checkpoint; returns its step, 0 if there is none.

        A damaged one is reported and set aside, and the previous one is used.

        Raises:
            UserError: There are checkpoints, but none can be read.
        """
        damaged: list[Path] = []
        for checkpoint in reversed(complete_checkpoints(self.folder)):
            problem = damage(checkpoint, self.engine.processes)
            if problem is not None:
                _print(problem)
            if self.engine.any_rank(problem is not None)[0]:
                damaged.append(checkpoint)
                continue
            step = self._load(checkpoint)
            if self.engine.processes.is_first:
                self._set_aside(damaged)
            return step
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is intact",
                f"delete {self.folder} and run the same command again to start over",
            )
        return 0

    def _set_aside(self, damaged: list[Path]) -> None:
        for checkpoint in damaged:
            aside = self.folder / f"damaged_{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            _print(f"moved it to {aside}; using the previous checkpoint")

    def _partial(self, step: int) -> Path:
        return self.folder / f".partial_{step:08d}"

    def _complete(self, num_applied: int) -> None:
        partial, final = self._partial(self._step), self.folder / f"step_{self._step:08d}"
        engine = self.engine
        sums = sorted(partial.glob("*.sum"))
        manifest = {
            "format": FORMAT,
            "step": self._step,
            "world_size": engine.processes.world_size,
            "zero_stage": engine.zero_stage,
            "applied_updates": num_applied,
            "files": {path.stem: json.loads(path.read_text()) for path in sums},
        }
        for path in sums:
            path.unlink()
        with (partial / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        self._prune()

    def _prune(self) -> None:
        every = self.config.keep_every_steps
        old = complete_checkpoints(self.folder)[: -self.config.keep_last]
        unneeded = [path for path in old if not every or step_of(path) % every]
        for path in [*unneeded, *self.folder.glob(".partial_*")]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                _print(f"cannot delete {path}: {first_line(error)}; training continues")

    def _load(self, checkpoint: Path) -> int:
        manifest = read_manifest(checkpoint)
        assert not isinstance(manifest, str)
        try:
            files = [checkpoint / name for name in manifest.files]
            self.engine.load_state(files, manifest.applied_updates)
        except Exception as error:  # safetensors and the file system each raise their own
            raise UserError(
                f"cannot read checkpoint {checkpoint}: {first_line(error)}",
                f"delete {checkpoint} and run the same command again to resume from the previous "
                "one",
            ) from error
        return manifest.step


class _WriterThread(threading.Thread):
    """Writes one rank's file, and next to it its size and sha256."""

    def __init__(self, folder: Path, rank: int, tensors: dict[str, Any], num_applied: int) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.file = folder / f"rank_{rank:05d}.safetensors"
        self.tensors, self.num_applied = tensors, num_applied
        self.problem: str | None = None
        self.start()

    def run(self) -> None:
        from ssl_vit.training.state_shards import write_state

        try:
            write_state(self.file, self.tensors)
            facts = {"bytes": self.file.stat().st_size, "sha256": hash_file(self.file)}
            self.file.with_name(f"{self.file.name}.sum").write_text(json.dumps(facts))
        except Exception as error:  # safetensors wraps the file system's errors in its own
            self.problem = first_line(error)
        finally:
            self.tensors = {}


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))


def step_of(checkpoint: Path) -> int:
    """Step of a checkpoint (or export), from its folder's name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files have their original sizes; needs no torch."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        manifest = read_manifest(checkpoint)
        if isinstance(manifest, str):
            continue
        files = manifest.files.items()
        if all(_wrong_size(checkpoint, name, facts) is None for name, facts in files):
            return checkpoint
    return None


def read_manifest(checkpoint: Path) -> Manifest | str:
    """A checkpoint's manifest, or the reason why it cannot be used."""
    file = checkpoint / MANIFEST
    try:
        values = read_json(file, "")
        if values.get("format") != FORMAT:
            return f"checkpoint {checkpoint} was written by another version of ssl-vit"
        manifest = checked(Manifest, values, str(file), "")
    except UserError as error:
        return error.problem
    if manifest.step != step_of(checkpoint):
        return f"{file} is for step {manifest.step:,}, unlike its folder"
    return manifest


def damage(checkpoint: Path, processes: Processes) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files; None if nothing. Together the
    ranks check all files.
    """
    manifest = read_manifest(checkpoint)
    if isinstance(manifest, str):
        return manifest
    names = sorted(manifest.files)[processes.rank :: processes.world_size]
    for name in names:
        if (problem := _wrong_size(checkpoint, name, manifest.files[name])) is not None:
            return problem
        if hash_file(checkpoint / name) != manifest.files[name].sha256:
            return f"checkpoint file {checkpoint / name} is damaged: its sha256 differs"
    return None


def _wrong_size(checkpoint: Path, name: str, facts: FileFacts) -> str | None:
    file, size = checkpoint / name, facts.bytes
    if file.is_file() and file.stat().st_size == size:
        return None
    found = f"{file.stat().st_size:,} bytes" if file.is_file() else "none"
    return f"checkpoint file {file} is damaged: expected {size:,} bytes, found {found}"


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
