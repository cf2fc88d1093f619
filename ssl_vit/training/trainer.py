"""The one training loop. Every objective runs in it; it knows the contract and nothing else."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ssl_vit.errors import UserError
from ssl_vit.files import OptionalWrites, replacing
from ssl_vit.monitors.monitor import Monitor
from ssl_vit.monitors.probes import Probe, summary
from ssl_vit.objectives.objective import Objective, Observed
from ssl_vit.training.alarms import AlarmFile, in_words
from ssl_vit.training.bad_samples import BadSamples
from ssl_vit.training.checkpoint import Checkpoints
from ssl_vit.training.config import LogConfig
from ssl_vit.training.consensus import gather
from ssl_vit.training.engine import Engine
from ssl_vit.training.guards import HangDetector, NonfiniteUpdates
from ssl_vit.training.length import Costs, is_measured, warmed_up
from ssl_vit.training.metrics import MetricsLog
from ssl_vit.training.preemption import Preemption
from ssl_vit.training.profile import StepProfile
from ssl_vit.training.progress import ProgressLine
from ssl_vit.training.update import LoadedBatch, StepResult


class Batches(Protocol):
    """Micro-batches of this rank."""

    def __iter__(self) -> Iterator[LoadedBatch]: ...

    def __next__(self) -> LoadedBatch: ...

    def finish(self) -> None:
        """Wait until the shards that were read are known to be whole."""
        ...

    def close(self) -> None:
        """End the data workers."""
        ...


class Exports(Protocol):
    """Writes portable exports."""

    @property
    def every_steps(self) -> int:
        """Updates between two of them."""
        ...

    def due(self, step: int) -> bool:
        """Whether one belongs after ``step`` updates."""
        ...

    def write(self, step: int) -> bool:
        """Write one; every rank calls it. False where it could not be written, which was said."""
        ...


@dataclass(frozen=True)
class Log:
    """Where the first rank writes and speaks."""

    metrics: MetricsLog
    progress: ProgressLine
    monitor: Monitor
    alarms: AlarmFile
    panels: Path
    """Folder of the pictures as PNG, for those without TensorBoard."""
    panel_writes: OptionalWrites
    """Of the pictures."""

    def record(
        self,
        step: int,
        result: StepResult,
        observed: Sequence[Observed],
        probed: Mapping[str, float],
        num_bad: int,
        blocked_seconds: float,
    ) -> None:
        """Tell of update ``step``, counted from 0, of what monitors make of its features, of probes
        after it, of the bad samples so far, and of the time spent saving.
        """
        measures, alarms = self.monitor.look(step, observed, result.metrics)
        self.metrics.record(step, result, blocked_seconds, {**measures, **probed})
        self.alarms.write(alarms)
        if probed:
            self.progress.probed = summary(probed)
        self.progress.show(step, result, num_bad, self.monitor.watch.active)
        for alarm in alarms:
            self.progress.say(in_words(alarm))

    def begin(self, probed: Mapping[str, float]) -> None:
        """Tell of probes before the first update."""
        self.metrics.begin(probed)
        self.progress.say(f"before training: {summary(probed)}")

    def show(self, step: int, pictures: dict[str, Tensor]) -> None:
        """(3, H, W) uint8 pictures, to TensorBoard and as PNG."""
        self.metrics.panel(step, pictures)
        with self.panel_writes.attempt():
            self.panels.mkdir(exist_ok=True)
            for name, picture in pictures.items():
                pixels = picture.permute(1, 2, 0).cpu().numpy()
                with replacing(self.panels / f"{name}_{step + 1:08d}.png") as partial:
                    Image.fromarray(pixels).save(partial, "PNG")

    def close(self) -> None:
        """Leave terminal and files in order."""
        self.progress.close()
        self.metrics.close()
        self.alarms.close()


@dataclass(frozen=True)
class Trainer:
    """The parts of a run; ``log`` is None on every rank but the first."""

    objective: Objective
    engine: Engine
    batches: Batches
    bad_samples: BadSamples
    nonfinite: NonfiniteUpdates
    hangs: HangDetector
    checkpoints: Checkpoints
    exports: Exports
    log: Log | None
    config: LogConfig
    preemption: Preemption
    probe: Probe | None = None
    profile: StepProfile | None = None

    def run(self, start_step: int, total_steps: int) -> bool:
        """Train to the end, or until asked to stop.

        Args:
            start_step: Updates already made.
            total_steps: Updates in all.

        Returns:
            Whether the run is complete; otherwise it was stopped by a signal, and saved.

        Raises:
            UserError: Too many updates in a row were not finite (none of them is saved), a sample
                or shard cannot be had, too many were bad (saved first), or the end could not be
                saved.
        """
        if start_step >= total_steps:
            # It was deleted, could not be written, or a kill came between the two.
            self._require_export(self._export(total_steps), total_steps)
        self._probe_first(start_step)
        exported = True
        for step in range(start_step, total_steps):
            result = self._train_step(step)
            self.hangs.beat()
            if self.profile is not None:
                self.profile.step()
            self.nonfinite.record(step, result)
            self.bad_samples.record(step, result.bad)
            is_last = step + 1 == total_steps
            self._tell(step, result, is_last)
            if is_last:
                self.batches.finish()
            # One vote on all; a rank that came back may have counted other bad samples.
            too_bad = self.bad_samples.are_too_many(step + 1)
            stop, too_bad, *written = self.engine.any_rank(
                self.preemption.asked, too_bad, *self.checkpoints.state
            )
            stop = stop or too_bad
            self.checkpoints.settle(*written)
            # The export first: a kill between the two then costs nothing, as the step is
            # redone.
            if is_last or self.exports.due(step + 1):
                exported = self._export(step + 1)
            if stop or is_last or self.checkpoints.due(step + 1):
                self.checkpoints.begin(step + 1)
            if (stop or is_last) and not self.checkpoints.finish():
                raise UserError(
                    f"update {step + 1} could not be saved",
                    "make room and run the same command again; it goes on from the newest "
                    "checkpoint",
                    may_pass=True,
                )
            if too_bad:
                raise self.bad_samples.error(step + 1)
            if stop and not is_last:
                return False
            if is_last:
                self._require_export(exported, total_steps)
        return True

    def close(self) -> None:
        """End the data workers, and leave all files in order."""
        self.hangs.close()
        self.batches.close()
        self.bad_samples.close()
        self.nonfinite.close()
        if self.profile is not None:
            self.profile.close()
        if self.log is not None:
            self.log.close()

    def rehearse(self, minutes: float, began: float) -> Costs | None:
        """Time a few updates, and once each what else a run does; every rank calls it.

        The parts are of no use afterwards: nothing is counted, logged or kept.

        Args:
            minutes: Of the whole run; a small part of them is spent here.
            began: Seconds of ``time.perf_counter`` when the parts began to be built.

        Returns:
            None where a signal asked to stop.
        """
        setup = time.perf_counter() - began
        seconds: list[float] = []
        enough = False
        while not enough:
            seconds.append(_seconds_of(lambda: self._train_step(len(seconds))))
            self.hangs.beat()
            asked, enough = self.engine.any_rank(
                self.preemption.asked, is_measured(seconds, minutes)
            )
            if asked:
                return None
        update = fmean(warmed_up(seconds))
        probe = _seconds_of(self._probe) if self.probe is not None else 0.0
        panels = _seconds_of(lambda: self._show_panels(0, self.engine.last_batch))
        export = _seconds_of(lambda: self._export(1))
        copy = _seconds_of(lambda: self.checkpoints.begin(1))
        write = _seconds_of(self.checkpoints.finish)
        shares = [
            probe / (self.probe.every_steps if self.probe is not None else 1),
            panels / self.config.panel_every_steps,
            export / self.exports.every_steps,
            copy / self.checkpoints.config.every_steps,
        ]
        # A run probes before its first update too.
        once = setup + seconds[0] + 2 * probe + panels + export + copy + write
        return Costs(once, update + sum(shares), update, len(warmed_up(seconds)))

    def _train_step(self, step: int) -> StepResult:
        try:
            measure_norms = (step + 1) % self.config.norm_every_steps == 0
            return self.engine.train_step(self.batches, step, measure_norms)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has not enough memory: {str(error).partition('. ')[0]}",
                "run the same command with engine.micro_batch_size=auto, "
                "engine.activation_checkpointing=true or a higher engine.zero_stage; "
                "`ssl-vit plan` says what each gives",
            ) from None

    def _export(self, step: int) -> bool:
        with self.engine.gathered():
            return self.exports.write(step)

    def _require_export(self, exported: bool, total_steps: int) -> None:
        """A run without its last export is not complete."""
        if self.engine.any_rank(not exported)[0]:
            raise UserError(
                f"the export of update {total_steps} could not be written",
                "make room and run the same command again; only the export is missing",
                may_pass=True,
            )

    def _probe_first(self, start_step: int) -> None:
        """What is there before anything is learned."""
        if self.probe is None or start_step:
            return
        probed = self._probe()
        if self.log is not None and probed:
            self.log.begin(probed)

    def _tell(self, step: int, result: StepResult, is_last: bool) -> None:
        """Log the update, with what takes longer where it is time for that."""
        made, probed = step + 1, {}
        if self.probe is not None and (is_last or made % self.probe.every_steps == 0):
            probed = self._probe()
        if self.log is not None:
            blocked = self.checkpoints.take_blocked_seconds()
            bad = self.bad_samples.count
            self.log.record(step, result, self.engine.observed, probed, bad, blocked)
        if made % self.config.panel_every_steps == 0 or is_last:
            self._show_panels(step, self.engine.last_batch)

    def _probe(self) -> dict[str, float]:
        """Accuracies on labeled images, the same on every rank; every rank calls it."""
        assert self.probe is not None
        self.objective.eval()
        with self.engine.gathered(), self.engine.autocast():
            mine = self.probe.encode(self.objective, self.engine.device)
        self.objective.train()
        found = self.probe.accuracies(gather(mine, self.engine.processes))
        if not found and self.log is not None:
            self.log.progress.say("online probe skipped: its features are not finite")
        return found

    def _show_panels(self, step: int, batch: Any) -> None:
        self.objective.eval()
        with self.engine.gathered(), self.engine.autocast():
            pictures = self.objective.panels(batch)
        self.objective.train()
        if self.log is not None:
            self.log.show(step, pictures)


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
