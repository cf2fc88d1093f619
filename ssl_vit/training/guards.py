"""Guards of a long run: bad samples, steps with a non-finite loss or gradient, hanging ranks."""

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

from ssl_vit.data.batches import BadSample
from ssl_vit.data.config import DataConfig
from ssl_vit.errors import UserError
from ssl_vit.training.config import GuardConfig
from ssl_vit.training.metrics_file import AppendedLines, count_until

if TYPE_CHECKING:
    from ssl_vit.training.update import StepResult

# A share of the first few samples says nothing about the rest.
_FEWEST_SEEN = 1_000
_KEYS = 64  # named per step
_LOOK_SECONDS = 1.0


class BadSamples:
    """Samples that could not be decoded: each step's are listed once, and their share is limited.
    Every rank counts.

    Args:
        lines: `bad_samples.jsonl` of the run folder.
        start_step: Number of steps already made.
        data: Batch size and limit.
    """

    def __init__(self, lines: AppendedLines, start_step: int, data: DataConfig) -> None:
        self.max_fraction, self.batch = data.max_bad_fraction, data.global_batch_size
        self._lines = lines
        self.count = count_until(lines.path, start_step)

    def record(self, step: int, bad: Sequence[BadSample]) -> None:
        """Add the bad samples of all ranks in step ``step``, counted from 0."""
        self.count += len(bad)
        self._lines.write({"step": step + 1, **asdict(sample)} for sample in bad)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def are_too_many(self, num_updates: int) -> bool:
        """Whether their share of all samples of so many steps is above the limit."""
        return self.count > self.max_fraction * max(num_updates * self.batch, _FEWEST_SEEN)

    def error(self, num_updates: int) -> UserError:
        """The error to raise if they are."""
        return UserError(
            f"{self.count:,} of {num_updates * self.batch:,} samples could not be decoded, more "
            f"than data.max_bad_fraction={self.max_fraction:g}; {self._lines.path} lists them",
            "pack the images again, or run the same command with a larger data.max_bad_fraction "
            "to continue",
        )


class NonfiniteUpdates:
    """Steps that were skipped because the loss or a gradient was NaN or infinite.

    Args:
        lines: `nonfinite.jsonl` of the run folder; the rank that writes it also prints.
        guard: How many consecutive ones are too many.
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
        self.consecutive = 0

    def record(self, step: int, result: "StepResult") -> None:
        """Check step ``step``, counted from 0.

        Raises:
            UserError: Too many consecutive steps were skipped; with the usual remedies.
        """
        if result.applied:
            self.consecutive = 0
        if result.applied or result.overflowed:  # float16 finds its scale by trial
            return
        self.consecutive += 1
        if self._lines.writes:
            self._write(step, result)
        if self.consecutive >= self.most:
            raise UserError(
                f"{self.consecutive} consecutive steps had a non-finite loss or gradient, up to "
                f"step {step + 1}: {_what(result)}; {self._lines.path} lists their samples",
                "no checkpoint contains these steps; start a new run with a lower "
                "optimizer.base_learning_rate, optimizer.clip_norm=1 or "
                "engine.precision=float32; if the samples are always the same, inspect them",
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
            f"step {step + 1} was skipped: {_what(result)}; its samples are listed in "
            f"{self._lines.path}",
            file=sys.stderr,
            flush=True,
        )


def _what(result: "StepResult") -> str:
    if not math.isfinite(result.loss):
        return "the loss was not finite"
    return "a gradient was not finite, although the loss was"


class HangDetector:
    """Writes the stack of every thread if no step ends for a while; one detector on every rank.

    The interpreter's own watchdog does the writing, because it needs no lock that a hanging thread
    may hold.

    Args:
        folder: `hangs/` of the run folder; created when the run starts.
        rank: Rank of this process.
        minutes: Minutes without a step; 0 turns it off.
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
                threading.Thread(target=self._report, name="hang detector", daemon=True).start()

    def beat(self) -> None:
        """A step has ended, or something else that may take long begins."""
        self._beat = time.monotonic()
        if self._stacks is not None:
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=self._stacks)

    def close(self) -> None:
        """Stop watching; the file is deleted if nothing was written."""
        self._over.set()
        if self._stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        with contextlib.suppress(OSError):
            if not self.file.stat().st_size:
                self.file.unlink()
                self.file.parent.rmdir()  # succeeds on the last rank, if no stacks are in it

    def _report(self) -> None:
        reported = 0.0
        while not self._over.wait(_LOOK_SECONDS):
            if self._beat != reported and time.monotonic() - self._beat > self.seconds:
                reported = self._beat
                print(
                    f"no step for {self.seconds / 60:g} minutes; stack traces of every rank are in "
                    f"{self.file.parent}",
                    file=sys.stderr,
                    flush=True,
                )
