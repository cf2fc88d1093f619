"""The training loop of all objectives, which it knows only by their contract."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import torch

from ssl_vit.data.batches import Batches
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import RunExports
from ssl_vit.files import replacing
from ssl_vit.monitors.probes import Probe
from ssl_vit.monitors.validation import Validation
from ssl_vit.objectives.objective import Objective
from ssl_vit.training.checkpoint import Checkpoints
from ssl_vit.training.config import LogConfig
from ssl_vit.training.consensus import gather
from ssl_vit.training.guards import BadSamples, HangDetector, NonfiniteUpdates
from ssl_vit.training.length import Costs, is_measured, warmed_up
from ssl_vit.training.log import Log
from ssl_vit.training.metrics_file import AppendedLines
from ssl_vit.training.preemption import Preemption
from ssl_vit.training.profile import StepProfile
from ssl_vit.training.update import StepResult

if TYPE_CHECKING:
    from ssl_vit.training.engine import Engine

Moment = Literal["before log", "after log", "before checkpoint"]


@dataclass(frozen=True)
class Event:
    """What a run does every ``every_steps`` steps, and after the last one."""

    every_steps: int
    moment: Moment
    """When in a step."""
    run: Callable[[int], Mapping[str, float]]
    """Called on every rank with the number of steps made; returns measures for the log."""
    at_start: bool = False
    """Whether it also runs before the first step."""


@dataclass(kw_only=True)
class Trainer:
    """The parts of a run; ``log`` is None on every rank but the first."""

    objective: Objective
    engine: "Engine"
    batches: Batches
    bad_samples: BadSamples
    nonfinite: NonfiniteUpdates
    hangs: HangDetector
    checkpoints: Checkpoints
    exports: RunExports
    log_config: LogConfig
    preemption: Preemption
    log: Log | None = None
    probe: Probe | None = None
    validation: Validation | None = None
    validations: AppendedLines | None = None
    """Where each validation is written down."""
    ended: Path = Path()
    """Where the first rank notes that validation ended the run."""
    profile: StepProfile | None = None
    _exported: bool = field(default=True, init=False)
    """Whether the latest export, if any, could be written."""

    @property
    def events(self) -> list[Event]:
        """The periodic events, in their order within a step."""
        events = [
            Event(self.log_config.panel_every_steps, "after log", self._show_panels),
            # Before the checkpoint: a kill between the two then costs nothing, as the step is
            # redone.
            Event(self.exports.every_steps, "before checkpoint", self._export),
        ]
        if self.probe is not None:
            probes = Event(self.probe.every_steps, "before log", self._probe, at_start=True)
            events.insert(0, probes)
        if self.validation is not None:
            events.insert(0, Event(self.validation.every_steps, "before log", self._validate))
        return events

    @property
    def is_over(self) -> bool:
        """Whether validation says that there is nothing more to gain; the same on every rank."""
        return self.validation is not None and self.validation.is_over

    def run(self, start_step: int, total_steps: int) -> bool:
        """Train to the end, or until a signal asks to stop.

        Args:
            start_step: Number of steps already made.
            total_steps: Total number of steps.

        Returns:
            Whether the run is complete; otherwise it was stopped by a signal, and saved.

        Raises:
            UserError: Too many consecutive steps were not finite (none of them is saved), a sample
                or shard is unavailable, too many samples were bad (saved first), or the end could
                not be saved.
        """
        self._begin(start_step)
        if start_step >= total_steps or self.is_over:
            # The export was deleted, could not be written, or a kill came before it was.
            self._export_last(start_step)
            self._end(start_step)
            return True
        for step in range(start_step, total_steps):
            result = self._train_step(step)
            self._watch(step, result)
            is_last = step + 1 == total_steps
            measures = self._do_events("before log", step + 1, is_last)
            is_last = is_last or self.is_over
            self._record(step, result, measures)
            self._do_events("after log", step + 1, is_last)
            if is_last:
                self.batches.finish()
            # One vote on everything; after a restart, a rank's count of bad samples may differ.
            too_bad = self.bad_samples.are_too_many(step + 1)
            stop, too_bad, *written = self.engine.any_rank(
                self.preemption.requested, too_bad, *self.checkpoints.state
            )
            stop = stop or too_bad
            self.checkpoints.settle(*written)
            if is_last:
                self._export_last(step + 1)
            else:
                self._do_events("before checkpoint", step + 1, is_last)
            if stop or is_last or self.checkpoints.due(step + 1):
                self.checkpoints.begin(step + 1)
            if (stop or is_last) and not self.checkpoints.finish():
                raise UserError(
                    f"step {step + 1} could not be saved",
                    "free disk space and run the same command again to resume from the newest "
                    "checkpoint",
                    may_pass=True,
                )
            if too_bad:
                raise self.bad_samples.error(step + 1)
            if stop and not is_last:
                return False
            if is_last:
                self._end(step + 1)
                return True
        return True

    def close(self) -> None:
        """End the data workers and close all files."""
        self.hangs.close()
        self.batches.close()
        self.bad_samples.close()
        self.nonfinite.close()
        if self.validations is not None:
            self.validations.close()
        if self.profile is not None:
            self.profile.close()
        if self.log is not None:
            self.log.close()

    def rehearse(self, minutes: float, began: float) -> Costs | None:
        """Time a few steps, and once each everything else that a run does; every rank calls it.

        The trainer cannot be used afterwards: nothing is counted, logged or kept.

        Args:
            minutes: Length of the whole run; a small part of it is spent here.
            began: Value of ``time.perf_counter`` when construction of the parts began.

        Returns:
            The measured costs; None if a signal asked to stop.
        """
        setup = time.perf_counter() - began
        seconds: list[float] = []
        enough = False
        while not enough:
            seconds.append(_seconds_of(lambda: self._train_step(len(seconds))))
            self.hangs.beat()
            stop, enough = self.engine.any_rank(
                self.preemption.requested, is_measured(seconds, minutes)
            )
            if stop:
                return None
        update = fmean(warmed_up(seconds))
        took = [(event, _seconds_of(partial(event.run, 1))) for event in self.events]
        copy = _seconds_of(lambda: self.checkpoints.begin(1))
        write = _seconds_of(self.checkpoints.finish)
        shares = [each / event.every_steps for event, each in took]
        shares.append(copy / self.checkpoints.config.every_steps)
        ends = [each * (2 if event.at_start else 1) for event, each in took]
        once = setup + seconds[0] + sum(ends) + copy + write
        return Costs(once, update + sum(shares), update, len(warmed_up(seconds)))

    def _train_step(self, step: int) -> StepResult:
        try:
            measure_norms = (step + 1) % self.log_config.norm_every_steps == 0
            return self.engine.train_step(self.batches, step, measure_norms)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU is out of memory: {str(error).partition('. ')[0]}",
                "run the same command with engine.micro_batch_size=auto, "
                "engine.activation_checkpointing=true or a higher engine.zero_stage; "
                "`ssl-vit plan` shows the effect of each",
            ) from None

    def _watch(self, step: int, result: StepResult) -> None:
        """Tell everyone who counts steps and what went wrong in them."""
        self.hangs.beat()
        if self.log is not None and (note := self.engine.take_note()):
            self.log.progress.say(note)
        if self.profile is not None:
            self.profile.step()
        self.nonfinite.record(step, result)
        self.bad_samples.record(step, result.bad)

    def _begin(self, start_step: int) -> None:
        """Run the events that are due before the first step; after a kill, forget later exports."""
        if self.validation is not None:
            # One of them might be newer than the run's last.
            self.exports.forget_after(start_step)
        if start_step:
            return
        measures: dict[str, float] = {}
        for event in self.events:
            if event.at_start:
                measures |= event.run(0)
        if self.log is not None and measures:
            self.log.begin(measures)

    def _do_events(self, moment: Moment, made: int, is_last: bool) -> dict[str, float]:
        """Run the events that are due after ``made`` steps; returns their measures."""
        measures: dict[str, float] = {}
        for event in self.events:
            if event.moment == moment and (is_last or made % event.every_steps == 0):
                measures |= event.run(made)
        return measures

    def _record(self, step: int, result: StepResult, measures: Mapping[str, float]) -> None:
        if self.log is not None:
            blocked = self.checkpoints.take_blocked_seconds()
            bad = self.bad_samples.count
            self.log.record(step, result, self.engine.observed, measures, bad, blocked)

    def _probe(self, _: int) -> dict[str, float]:
        """Accuracies on labeled images, the same on every rank."""
        assert self.probe is not None
        with self._evaluating():
            mine = self.probe.encode(self.objective, self.engine.device)
        found = self.probe.accuracies(gather(mine, self.engine.processes))
        if not found and self.log is not None:
            self.log.progress.say("online probe skipped: its features are not finite")
        return found

    def _validate(self, made: int) -> dict[str, float]:
        """Measures of the validation images; the best weights so far are exported."""
        assert self.validation is not None
        with self._evaluating():
            mine = self.validation.predict(self.objective, self.engine.device)
        measured = self.validation.measure(gather(mine, self.engine.processes))
        # The first rank's, because another kind of processor may round otherwise.
        found = gather(measured, self.engine.processes)[0]
        before = self.validation.best_step
        if self.validations is not None:
            # JSON has no NaN: a line with one would be lost to a resumed run.
            finite = {name: value for name, value in found.items() if math.isfinite(value)}
            self.validations.write([{"step": made, **finite}])
        if self.validation.judge(made, found):
            self._export(made)
            if self._exported:
                self.exports.replace(before, made)
                self.exports.forget_replaced(self.checkpoints.newest_step())
        if self.is_over and self.log is not None:
            self.log.progress.say(
                f"stopping: validation was best at step {self.validation.best_step:,}, whose "
                "weights are exported"
            )
        return found

    def _export_last(self, made: int) -> None:
        """The last export: of the weights that validation found the best, if there is one."""
        best = self.validation.best_step if self.validation is not None else 0
        if best in (0, made):
            self._export(made)
        elif self.engine.any_rank(self.exports.lacks(best))[0]:
            self._export(made)
            if self.log is not None:
                self.log.progress.say(
                    f"the export of step {best:,}, the best by validation, is gone: the last "
                    "weights are exported instead"
                )
        else:
            self._exported = self.exports.repeat(best, made)

    def _show_panels(self, made: int) -> dict[str, float]:
        with self._evaluating():
            pictures = self.objective.panels(self.engine.last_batch)
        if self.log is not None:
            self.log.show(made, pictures)
        return {}

    def _export(self, made: int) -> dict[str, float]:
        with self.engine.gathered():
            self._exported = self.exports.write(made)
        return {}

    def _end(self, made: int) -> None:
        """Raise an error if the last export is missing: the run is not complete without it. Note
        an end that came before the planned one.
        """
        if self.engine.any_rank(not self._exported)[0]:
            raise UserError(
                f"the export of step {made} could not be written",
                "free disk space and run the same command again; only the export is missing",
                may_pass=True,
            )
        self.exports.forget_replaced(made)
        if self.is_over and self.log is not None:
            with replacing(self.ended) as partial:
                partial.write_text(json.dumps({"step": made}) + "\n")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """A context with the whole objective on every rank, in evaluation mode."""
        self.objective.eval()
        with self.engine.gathered(), self.engine.autocast():
            yield
        self.objective.train()


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
