"""The first rank's log: metrics, curves, alarms, panels and the progress line."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ssl_vit.files import OptionalWrites, replacing
from ssl_vit.monitors.collapse import Alarm
from ssl_vit.monitors.monitor import Monitor
from ssl_vit.monitors.probes import summary
from ssl_vit.objectives.objective import Observed
from ssl_vit.training.metrics import MetricsLog
from ssl_vit.training.metrics_file import AppendedLines
from ssl_vit.training.progress import ProgressLine
from ssl_vit.training.update import StepResult


@dataclass(frozen=True)
class Log:
    """The first rank's log."""

    metrics: MetricsLog
    progress: ProgressLine
    monitor: Monitor
    alarms: AppendedLines
    panels: Path
    """Folder of the panels as PNG files."""
    panel_writes: OptionalWrites
    """Writes of panels, which may fail without ending the run."""

    def record(
        self,
        step: int,
        result: StepResult,
        observed: Sequence[Observed],
        probed: Mapping[str, float],
        num_bad: int,
        blocked_seconds: float,
    ) -> None:
        """Record step ``step``, counted from 0: its result, what the monitors measure of its
        features, probes after it, the number of bad samples so far and the time spent saving.
        """
        measures, alarms = self.monitor.look(step, observed, result.metrics)
        self.metrics.record(step, result, blocked_seconds, {**measures, **probed})
        self.alarms.write(asdict(alarm) for alarm in alarms)
        if probed:
            self.progress.probed = summary(probed)
        self.progress.show(step, result, num_bad, self.monitor.watch.active)
        for alarm in alarms:
            self.progress.say(describe_alarm(alarm))

    def begin(self, probed: Mapping[str, float]) -> None:
        """Record probes before the first step."""
        self.metrics.begin(probed)
        self.progress.say(f"before training: {summary(probed)}")

    def show(self, made: int, pictures: dict[str, Tensor]) -> None:
        """Write (3, H, W) uint8 pictures after ``made`` steps, to TensorBoard and as PNG files."""
        self.metrics.panel(made, pictures)
        with self.panel_writes.attempt():
            self.panels.mkdir(exist_ok=True)
            for name, picture in pictures.items():
                pixels = picture.permute(1, 2, 0).cpu().numpy()
                with replacing(self.panels / f"{name}_{made:08d}.png") as partial:
                    Image.fromarray(pixels).save(partial, "PNG")

    def close(self) -> None:
        """Close the progress line and all files."""
        self.progress.close()
        self.metrics.close()
        self.alarms.close()


def describe_alarm(alarm: Alarm) -> str:
    """Two lines for a person: the symptom with its evidence, and the usual remedy."""
    return (
        f"ALARM at step {alarm.step:,}: {alarm.symptom}: {alarm.evidence}\n"
        f"      usual remedies: {alarm.remedy}"
    )
