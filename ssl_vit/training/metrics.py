"""A run's metrics: `metrics.jsonl` (every step once, even after a kill) and TensorBoard."""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_vit.cost.devices import GIB
from ssl_vit.files import OptionalWrites, spelled_in_utf8
from ssl_vit.training.metrics_file import AppendedLines
from ssl_vit.training.plan import RunPlan
from ssl_vit.training.update import Seconds, StepResult

# Names without a slash whose curves are in the group "speed" instead of "train".
_SPEED = {
    "images_per_second",
    "images_per_second_per_process",
    "data_wait",
    "tflops_per_process",
    "mfu",
    "peak_memory_gib",
    "save_blocked_seconds",
}

_RETRY_SECONDS = 60.0


class MetricsLog:
    """The first rank's metrics log.

    Args:
        lines: `metrics.jsonl`.
        tensorboard: Folder of TensorBoard's event files.
        start_step: Number of steps already made.
        every_steps: Steps between two lines.
        global_batch_size: Images per step.
        plan: The run's plan.
        peak_flops: Peak operations per second of one process's device.
    """

    def __init__(
        self,
        lines: AppendedLines,
        tensorboard: Path,
        start_step: int,
        every_steps: int,
        global_batch_size: int,
        plan: RunPlan,
        peak_flops: float,
    ) -> None:
        self.every_steps, self.global_batch_size = every_steps, global_batch_size
        self.plan, self.peak_flops = plan, peak_flops
        self._since: list[StepResult] = []
        self._blocked_seconds = 0.0
        self._measures: dict[str, float] = {}
        self._lines = lines
        self._curves = _Curves(tensorboard, start_step)

    def begin(self, measures: Mapping[str, float]) -> None:
        """Add measures before the first step; to the curves only, because `metrics.jsonl` has one
        line per step.
        """
        self._curves.add_scalars(dict(measures), 0)

    def record(
        self,
        step: int,
        result: StepResult,
        blocked_seconds: float,
        measures: Mapping[str, float],
    ) -> None:
        """Log step ``step`` (counted from 0); it is recorded as ``step + 1``, the steps made.

        Args:
            blocked_seconds: Time for which a checkpoint blocked training since the last call.
            measures: Measures of monitors, if they were due; they appear in the next line.
        """
        made = step + 1
        self._measures |= measures
        self._blocked_seconds += blocked_seconds
        self._since.append(result)
        if made % self.every_steps:
            return
        scalars = {**_learning_scalars(self._since), **self._speed(self._since)}
        self._since = []
        scalars |= self._measures
        self._measures = {}
        if self._blocked_seconds:
            scalars["save_blocked_seconds"] = self._blocked_seconds
            self._blocked_seconds = 0.0
        if not result.applied:
            scalars["skipped"] = 1.0
        # JSON has no NaN, and a curve cannot show it.
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        line = {
            "step": made,
            "epoch": round(made * self.global_batch_size / self.plan.samples_per_epoch, 4),
            **dict.fromkeys(scalars),
            **finite,
            "samples": result.samples,
            "time": round(time.time(), 3),
        }
        self._lines.write([line])
        tags = {
            name if "/" in name else f"{'speed' if name in _SPEED else 'train'}/{name}": value
            for name, value in finite.items()
        }
        self._curves.add_scalars(tags, made)

    def _speed(self, results: Sequence[StepResult]) -> dict[str, float]:
        """Speed over all steps since the last line."""
        step_seconds = fmean(result.step_seconds for result in results)
        phases = zip(*(result.seconds for result in results), strict=True)
        seconds = Seconds(*(fmean(phase) for phase in phases))
        rate = self.global_batch_size / step_seconds
        per_process = rate / self.plan.world_size
        flops = per_process * self.plan.step_flops_per_image
        return {
            "images_per_second": rate,
            "images_per_second_per_process": per_process,
            "data_wait": seconds.data / step_seconds,
            **{f"seconds/{name}": value for name, value in seconds._asdict().items()},
            "tflops_per_process": flops / 1e12,
            "mfu": flops / self.peak_flops,
            "peak_memory_gib": results[-1].peak_memory_bytes / GIB,
        }

    def panel(self, made: int, pictures: dict[str, Tensor]) -> None:
        """Show (3, H, W) uint8 pictures after ``made`` steps."""
        self._curves.add_images(pictures, made)

    def text(self, name: str, text: str) -> None:
        """Show a text, such as the config, as a code block."""
        self._curves.add_text(name, "    " + text.replace("\n", "\n    "))

    def close(self) -> None:
        """Flush and close both."""
        self._lines.close()
        self._curves.close()


class _Curves:
    """TensorBoard's event files. If they cannot be written, a part of the curves is missing, and a
    new file is started later.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self.folder, self.step = folder, start_step
        self._effort = OptionalWrites(
            f"TensorBoard's files in {folder}", "Training continues without it"
        )
        self._writer: SummaryWriter | None = None
        self._retry_at = 0.0
        self._opened = contextlib.ExitStack()
        self._place: Path | None = None
        _quiet_writers()

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self.step = step

        def add(writer: SummaryWriter) -> None:
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)

        self._write(add)

    def add_images(self, pictures: Mapping[str, Tensor], step: int) -> None:
        """Add (3, H, W) uint8 pictures."""

        def add(writer: SummaryWriter) -> None:
            for name, picture in pictures.items():
                writer.add_image(name, picture.cpu(), step)

        self._write(add)

    def add_text(self, name: str, text: str) -> None:
        """Add a text in Markdown."""
        self._write(lambda writer: writer.add_text(name, text))

    def close(self) -> None:
        """Write pending points and close the files."""
        if self._writer is not None:
            with self._effort.attempt():
                self._writer.close()
        self._opened.close()

    def _write(self, add: Callable[[SummaryWriter], None]) -> None:
        if self._writer is None and time.monotonic() < self._retry_at:
            return
        with self._effort.attempt():
            try:
                if self._writer is None:
                    if self._place is None:
                        self._place = self._opened.enter_context(spelled_in_utf8(self.folder))
                    self._writer = SummaryWriter(str(self._place), purge_step=self.step + 1)
                add(self._writer)
            except OSError:
                # Its thread has ended with the error.
                self._writer, self._retry_at = None, time.monotonic() + _RETRY_SECONDS
                raise


@functools.cache
def _quiet_writers() -> None:
    """Keep TensorBoard's threads from printing tracebacks of errors that are raised here again."""
    before = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        of_writer = type(error.thread).__name__ == "_AsyncWriterThread"
        if not (of_writer and isinstance(error.exc_value, OSError)):
            before(error)

    threading.excepthook = hook


def _learning_scalars(results: Sequence[StepResult]) -> dict[str, float]:
    """Metrics of the last step, with the norms that were measured last."""
    result = results[-1]
    measured = next((each.norms for each in reversed(results) if each.norms), {})
    norms = {
        f"{kind}_norm/{group}": value
        for group, each in measured.items()
        for kind, value in each._asdict().items()
    }
    scale = {} if result.loss_scale == 1 else {"loss_scale": result.loss_scale}
    return {
        "loss": result.loss,
        **result.metrics,
        "grad_norm": result.grad_norm,
        **norms,
        "learning_rate": result.learning_rate,
        "weight_decay": result.weight_decay,
        **scale,
    }
