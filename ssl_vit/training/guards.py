"""What watches a long run: updates that came to nothing, and ranks that stand still."""

import contextlib
import faulthandler
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.errors import UserError
from ssl_vit.training.config import GuardConfig
from ssl_vit.training.metrics_file import AppendedLines

if TYPE_CHECKING:
    from ssl_vit.training.update import StepResult

_KEYS = 64  # named of one update
_LOOK_SECONDS = 1.0


class NonfiniteUpdates:
    """Updates that were not applied because the loss or a gradient was NaN or infinite.

    Args:
        file: `nonfinite.jsonl` of the run folder; created with the first one.
        start_step: Updates already made; lines of those that will be made again are cut off.
        config: How many in a row are too many.
        is_first: Whether this rank writes and speaks.
        name_samples: Sample numbers → their keys.
    """

    def __init__(
        self,
        file: Path,
        start_step: int,
        config: GuardConfig,
        is_first: bool,
        name_samples: Callable[[Sequence[int]], list[str]],
    ) -> None:
        self.file = file
        self.most = config.max_consecutive_nonfinite
        self.name_samples = name_samples
        self.in_a_row = 0
        self._lines = AppendedLines(file, start_step) if is_first else None

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
        if self._lines is not None:
            self._write(step, result, self._lines)
        if self.in_a_row >= self.most:
            raise UserError(
                f"{self.in_a_row} updates in a row came to nothing, up to update {step + 1}: "
                f"{_what(result)}. {self.file} names their samples",
                "nothing of it is in a checkpoint: begin a new run folder with a lower "
                "optimizer.base_learning_rate, with optimizer.clip_norm=1, or with "
                "engine.precision=float32; if it is always the same samples, look at them",
            )

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()

    def _write(self, step: int, result: "StepResult", lines: AppendedLines) -> None:
        numbers = result.suspects[:_KEYS]
        line = {
            "step": step + 1,
            "what": _what(result),
            "suspects": len(result.suspects),
            "keys": self.name_samples(numbers),
        }
        lines.write([line])
        print(
            f"update {step + 1} was not applied: {_what(result)}; its samples are in {self.file}",
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
