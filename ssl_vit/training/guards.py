"""What watches a long run: bad samples, updates that came to nothing, ranks that stand still."""

import contextlib
import faulthandler
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.config import DataConfig
from ssl_vit.errors import UserError
from ssl_vit.training.config import GuardConfig
from ssl_vit.training.metrics_file import AppendedLines, count_until

if TYPE_CHECKING:
    from ssl_vit.training.update import StepResult

# A share of the first few samples says nothing about the rest.
_FEWEST_SEEN = 1_000
_KEYS = 64  # named of one update
_LOOK_SECONDS = 1.0


class BadSamples:
    """Samples that could not be decoded: listed, every update's once, and limited. Every rank
    counts.

    Args:
        lines: `bad_samples.jsonl` of the run folder.
        start_step: Updates already made.
        data: Batch and limit.
    """

    def __init__(self, lines: AppendedLines, start_step: int, data: DataConfig) -> None:
        self.max_fraction, self.batch = data.max_bad_fraction, data.global_batch_size
        self._lines = lines
        self.count = count_until(lines.path, start_step)

    def record(self, step: int, bad: Sequence[BadSample]) -> None:
        """Add those of all ranks in update ``step``, counted from 0."""
        self.count += len(bad)
        self._lines.write({"step": step + 1, **asdict(sample)} for sample in bad)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def are_too_many(self, num_updates: int) -> bool:
        """Whether their share of all samples of so many updates is above the limit."""
        return self.count > self.max_fraction * max(num_updates * self.batch, _FEWEST_SEEN)

    def error(self, num_updates: int) -> UserError:
        """What to say when they are."""
        return UserError(
            f"{self.count:,} of {num_updates * self.batch:,} samples could not be decoded, more "
            f"than data.max_bad_fraction={self.max_fraction:g}; {self._lines.path} lists them",
            "pack the images again; or go on by the same command with a larger "
            "data.max_bad_fraction",
        )


class NonfiniteUpdates:
    """Updates that were not applied because the loss or a gradient was NaN or infinite.

    Args:
        lines: `nonfinite.jsonl` of the run folder; the rank that writes it also speaks.
        guard: How many in a row are too many.
        name_samples: Sample numbers → their keys.
    """

    def __init__(
        self,
        lines: AppendedLines,
        guard: GuardConfig,
        name_samples: Callable[[Sequence[int]], list[str]],
    ) -> None:
        self._lines = lines
        self.most = guard.max_consecutive_nonfinite
        self.name_samples = name_samples
        self.in_a_row = 0

    def record(self, step: int, result: "StepResult") -> None:
        """Look at update ``step``, counted from 0.

        Raises:
            UserError: Too many came to nothing in a row; with what usually cures it.
        """
        if result.applied:
            self.in_a_row = 0
        if result.applied or result.overflowed:  # float16 looks for its scale by trying
            return
        self.in_a_row += 1
        if self._lines.writes:
            self._write(step, result)
        if self.in_a_row >= self.most:
            raise UserError(
                f"{self.in_a_row} updates in a row came to nothing, up to update {step + 1}: "
                f"{_what(result)}. {self._lines.path} names their samples",
                "nothing of it is in a checkpoint: begin a new run folder with a lower "
                "optimizer.base_learning_rate, with optimizer.clip_norm=1, or with "
                "engine.precision=float32; if it is always the same samples, look at them",
            )

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _write(self, step: int, result: "StepResult") -> None:
        numbers = result.suspects[:_KEYS]
        line = {
            "step": step + 1,
            "what": _what(result),
            "suspects": len(result.suspects),
            "keys": self.name_samples(numbers),
        }
        self._lines.write([line])
        print(
            f"update {step + 1} was not applied: {_what(result)}; its samples are in "
            f"{self._lines.path}",
            file=sys.stderr,
            flush=True,
        )


def _what(result: "StepResult") -> str:
    if not math.isfinite(result.loss):
        return "the loss was not finite"
    return "a gradient was not finite, although the loss was"


class HangDetector:
    """Writes the stack of every thread when no update ends for a while; one on every rank.

    The interpreter's own watchdog does the writing: it needs no lock that a hanging thread may
    hold.

    Args:
        folder: `hangs/` of the run folder; created with the first one.
        rank: Of this process.
        minutes: Without an update; 0 turns it off.
    """

    def __init__(self, folder: Path, rank: int, minutes: float) -> None:
        self.file, self.seconds = folder / f"rank_{rank:05d}.txt", 60 * minutes
        self._beat = time.monotonic()
        self._over = threading.Event()
        self._stacks = None
        if not minutes:
            return
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._stacks = self.file.open("w")
        if self._stacks is not None:
            self.beat()
            if rank == 0:
                threading.Thread(target=self._tell, name="hang detector", daemon=True).start()

    def beat(self) -> None:
        """An update has ended, or something else that may take its time begins."""
        self._beat = time.monotonic()
        if self._stacks is not None:
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=self._stacks)

    def close(self) -> None:
        """Stop watching; the file goes if nothing was written."""
        self._over.set()
        if self._stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        with contextlib.suppress(OSError):
            if not self.file.stat().st_size:
                self.file.unlink()
                self.file.parent.rmdir()  # by the last rank, or while stacks are in it by none

    def _tell(self) -> None:
        told = 0.0
        while not self._over.wait(_LOOK_SECONDS):
            if self._beat != told and time.monotonic() - self._beat > self.seconds:
                told = self._beat
                print(
                    f"no update for {self.seconds / 60:g} minutes; what every rank is doing is in "
                    f"{self.file.parent}",
                    file=sys.stderr,
                    flush=True,
                )
