"""The progress line: step, loss, images/s, data-wait, ETA; plain lines without a terminal."""

import sys
import time
from collections import deque
from collections.abc import Sequence

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ssl_vit.progress import PLAIN_EVERY_SECONDS
from ssl_vit.training.update import StepResult
from ssl_vit.units import format_seconds

_WINDOW = 50


class ProgressLine:
    """The first rank's progress line in the terminal.

    Args:
        start_step: Number of steps already made.
        total_steps: Length of the run in steps.
        global_batch_size: Images per step.
    """

    def __init__(self, start_step: int, total_steps: int, global_batch_size: int) -> None:
        self.total_steps, self.global_batch_size = total_steps, global_batch_size
        self.recent: deque[StepResult] = deque(maxlen=_WINDOW)
        self.last_plain = 0.0
        self.num_bad = 0
        self.alarms: Sequence[str] = ()
        self.probed = ""
        """Summary of the latest online probe."""
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console

            self.bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=total_steps, completed=start_step, text="")

    def show(self, step: int, result: StepResult, num_bad: int, alarms: Sequence[str] = ()) -> None:
        """Show step ``step`` (from 0), the number of bad samples so far, and active alarms."""
        self.num_bad, self.alarms = num_bad, alarms
        self.recent.append(result)
        if self.bar is not None:
            self.bar.update(self.task, completed=step + 1, text=self._text())
            return
        now = time.monotonic()
        is_last = step + 1 == self.total_steps
        if now - self.last_plain >= PLAIN_EVERY_SECONDS or is_last:
            self.last_plain = now
            left = (self.total_steps - step - 1) * self._seconds() / len(self.recent)
            eta = "" if is_last else f"  ETA {format_seconds(left)}"
            line = f"step {step + 1}/{self.total_steps}  {self._text()}{eta}"
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print lines of text, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self.bar is not None:
            self.bar.stop()

    def _seconds(self) -> float:
        return sum(result.step_seconds for result in self.recent)

    def _text(self) -> str:
        seconds = self._seconds()
        rate = len(self.recent) * self.global_batch_size / seconds
        wait = 100 * sum(result.seconds.data for result in self.recent) / seconds
        bad = f"  bad samples {self.num_bad:,}" if self.num_bad else ""
        probed = f"  {self.probed}" if self.probed else ""
        alarms = f"  ALARM: {', '.join(self.alarms)}" if self.alarms else ""
        loss = self.recent[-1].loss
        speed = f"{rate:,.0f} images/s  data-wait {wait:.0f} %"
        return f"loss {loss:.4f}  {speed}{probed}{bad}{alarms}"
