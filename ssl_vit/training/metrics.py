"""What the run tells: `metrics.jsonl` (every update once, kills included) and TensorBoard."""

import json
import math
import time
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_vit.training.engine import StepResult
from ssl_vit.training.metrics_file import cut_after


class MetricsLog:
    """The first rank's log.

    Args:
        file: `metrics.jsonl`; lines of updates that will be made again are cut off.
        tensorboard: Folder of TensorBoard's event files.
        start_step: Updates already made.
        every_steps: Updates between two lines.
        global_batch_size: Images an update.
        samples_per_epoch: Images an epoch.
    """

    def __init__(
        self,
        file: Path,
        tensorboard: Path,
        start_step: int,
        every_steps: int,
        global_batch_size: int,
        samples_per_epoch: int,
    ) -> None:
        self.every_steps, self.global_batch_size = every_steps, global_batch_size
        self.samples_per_epoch = samples_per_epoch
        self._blocked_seconds = 0.0
        cut_after(file, start_step)
        self.file = file.open("a")
        self.writer = SummaryWriter(str(tensorboard), purge_step=start_step + 1)

    def record(self, step: int, result: StepResult, blocked_seconds: float) -> None:
        """Log update ``step`` (counted from 0); it appears as ``step + 1`` updates made.

        Args:
            blocked_seconds: Time that training stood still for a checkpoint since the last call.
        """
        made = step + 1
        self._blocked_seconds += blocked_seconds
        if made % self.every_steps:
            return
        scalars = {
            "loss": result.loss,
            **result.metrics,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "weight_decay": result.weight_decay,
            "images_per_second": self.global_batch_size / result.step_seconds,
            "data_wait": result.data_seconds / result.step_seconds,
        }
        if self._blocked_seconds:
            scalars["save_blocked_seconds"] = self._blocked_seconds
            self._blocked_seconds = 0.0
        if not result.applied:
            scalars["skipped"] = 1.0
        # JSON knows no NaN, and a curve has no place for it.
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        line = {
            "step": made,
            "epoch": round(made * self.global_batch_size / self.samples_per_epoch, 4),
            **dict.fromkeys(scalars),
            **finite,
            "samples": result.samples,
            "time": round(time.time(), 3),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in finite.items():
            self.writer.add_scalar(f"train/{name}", value, made)

    def panel(self, step: int, pictures: dict[str, Tensor]) -> None:
        """Show (3, H, W) uint8 pictures."""
        for name, picture in pictures.items():
            self.writer.add_image(name, picture.cpu(), step + 1)

    def text(self, name: str, text: str) -> None:
        """Show a text, such as the config, as a code block."""
        self.writer.add_text(name, "    " + text.replace("\n", "\n    "))

    def close(self) -> None:
        """Flush both."""
        self.file.close()
        self.writer.close()
