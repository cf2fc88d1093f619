"""The status of a run, from its files and its scheduler. If the scheduler cannot be asked, what
only it would know is reported as unknown.
"""

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ssl_vit.foreign import Count, Document, Seconds, typed_lines
from ssl_vit.monitors.collapse import Alarm
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.pretrain import is_complete
from ssl_vit.training.checkpoint import complete_checkpoints, newest_checkpoint, step_of
from ssl_vit.training.metrics_file import read_alarms
from ssl_vit.units import format_seconds
from ssl_vit_launch.batch import evaluation_logs
from ssl_vit_launch.history import Event, Restart, first_failure, restarts, why_ended
from ssl_vit_launch.schedulers import find
from ssl_vit_launch.slurm import JobState, find_job, has_accounting, has_slurm
from ssl_vit_launch.submission import Submission, events_of, newest_submission

_WINDOW = 50  # steps that the speed is averaged over
_TAIL_BYTES = 200_000
_ERROR_LINES = 12
# Our words for states of SLURM where they differ.
_STATES = {
    "PENDING": "waiting",
    "COMPLETING": "ending",
    "COMPLETED": "ended",
    "CANCELLED": "canceled",
}


@dataclass(frozen=True)
class Progress:
    """Progress of a run, from the end of its `metrics.jsonl`."""

    step: int
    loss: float | None
    images_per_second: float
    time: float
    """Time of the last step, in seconds since 1970."""


@dataclass(frozen=True)
class RunStatus:
    """Everything known about a run."""

    run: Path
    recipe: str
    total_steps: int
    """Steps of the whole run; 0 before the first start."""
    global_batch_size: int
    progress: Progress | None
    """None before the first step."""
    submission: Submission | None
    job: JobState | None
    is_complete: bool
    restarts: tuple[Restart, ...]
    ended: str
    """Why the last start ended; empty while it is running."""
    checkpoint: int
    """Step of the newest checkpoint."""
    exports: int
    num_nodes: int
    """Nodes of the last start; 0 before it."""
    alarms: tuple[Alarm, ...]
    """Alarms of the run so far."""

    @property
    def requested_nodes(self) -> int:
        """Nodes asked for on SLURM; 0 for a job on this machine."""
        last = self.submission
        return last.nodes if last is not None and last.cluster.scheduler == "slurm" else 0

    @property
    def state(self) -> str:
        """State of the run in one or two words."""
        if self.is_complete:
            return "complete"
        if self.job is not None and not self.job.is_over:
            return _STATES.get(self.job.state, self.job.state.lower())
        if self.submission is None:
            return "not submitted"
        if self.job is not None:
            return _STATES.get(self.job.state, self.job.state.lower())
        return "unknown" if not self.ended else "ended"

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the recent speed; None if that is unknown."""
        if self.progress is None or not self.total_steps or not self.progress.images_per_second:
            return None
        images = (self.total_steps - self.progress.step) * self.global_batch_size
        return images / self.progress.images_per_second


def read_status(run: Path) -> RunStatus:
    """Read a run folder and ask its scheduler.

    Raises:
        UserError: It is not a run folder.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    total, submission = folder.total_steps(), newest_submission(run)
    events = events_of(run)
    newest = newest_checkpoint(folder.checkpoints)
    job = find(submission) if submission is not None else None
    is_waiting = job is None or job.is_over or job.state == "PENDING"
    return RunStatus(
        run=run,
        recipe=config.recipe,
        total_steps=total,
        global_batch_size=config.data.global_batch_size,
        progress=read_progress(folder.metrics),
        submission=submission,
        job=job,
        is_complete=bool(total) and is_complete(folder, total),
        restarts=tuple(restarts(events)),
        ended=_end_of(events, submission) if is_waiting else "",
        checkpoint=0 if newest is None else step_of(newest),
        exports=len(complete_checkpoints(folder.exports)),
        num_nodes=next((e.nodes for e in reversed(events) if e.kind == "started"), 0),
        alarms=tuple(read_alarms(folder.alarms)),
    )


def _after_start(events: Sequence[Event]) -> list[Event] | None:
    """Events since the last start; None if there was no start."""
    starts = [place for place, event in enumerate(events) if event.kind == "started"]
    return list(events[starts[-1] + 1 :]) if starts else None


def _end_of(events: Sequence[Event], submission: Submission | None) -> str:
    """Why the last start ended; empty if the run is complete, or the job never started."""
    # Events of an earlier job do not matter for this one.
    since = submission.time if submission is not None else 0.0
    mine = [event for event in events if event.time >= since]
    after = _after_start(mine)
    if after is None:
        return "canceled before it started" if any(e.kind == "cancelled" for e in mine) else ""
    return "" if any(event.kind == "completed" for event in after) else why_ended(after)


class _MetricsLine(Document):
    step: Count
    time: Seconds
    loss: float | None = None
    images_per_second: float | None = None


def read_progress(metrics: Path) -> Progress | None:
    """Progress from the last lines of a `metrics.jsonl`; None if it has none."""
    if not metrics.is_file():
        return None
    # The first line is truncated, and the last may be incomplete.
    lines = list(typed_lines(_MetricsLine, tail_of(metrics)[-_WINDOW:]))
    if not lines:
        return None
    speeds = [line.images_per_second for line in lines if line.images_per_second]
    return Progress(
        step=lines[-1].step,
        loss=lines[-1].loss,
        images_per_second=fmean(speeds) if speeds else 0.0,
        time=lines[-1].time,
    )


def describe(status: RunStatus) -> list[str]:
    """The status as lines of text."""
    rows = {
        "run": f"{status.run}: {status.recipe}",
        "state": _describe_state(status),
        "progress": _describe_progress(status),
        "saved": _describe_saved(status),
        "restarts": _describe_restarts(status.restarts),
    }
    if status.alarms:
        rows["alarms"] = f"\n{'':10}".join(_describe_alarms(status.alarms))
    if status.ended:
        rows["ended"] = status.ended
    if status.submission is not None and status.submission.then:
        rows["then"] = f"\n{'':10}".join(_describe_evaluations(status.submission))
    lines = [f"{name:9} {text}" for name, text in rows.items() if text]
    lines += _unknown(status)
    if status.state not in ("running", "waiting", "complete", "ending"):
        if status.state != "canceled":
            lines += last_error_lines(status)
        if status.submission is not None:
            lines.append(f"continue with: ssl-vit launch resubmit {shlex.quote(str(status.run))}")
    return lines


def _describe_saved(status: RunStatus) -> str:
    exports = f"{status.exports} export{'s' * (status.exports != 1)}"
    if not status.checkpoint:
        return f"no checkpoint yet, {exports}"
    return f"checkpoint of step {status.checkpoint:,}, {exports}"


def _describe_state(status: RunStatus) -> str:
    parts = [status.state]
    if status.job is not None and not status.job.is_over:
        if status.job.nodes:
            parts.append(f"on {status.job.nodes}")
        if 0 < status.num_nodes < status.requested_nodes and status.state == "running":
            parts.append(f"({status.num_nodes} of {status.requested_nodes} nodes)")
        if status.job.reason and status.job.state == "PENDING":
            note = ", restarts shortly" if status.job.reason == "BeginTime" else ""
            parts.append(f"(reason: {status.job.reason}{note})")
    if status.submission is not None:
        parts.append(f"(job {status.submission.job}, {status.submission.cluster.scheduler})")
    return " ".join(parts)


def _describe_progress(status: RunStatus) -> str:
    if status.progress is None:
        return f"step 0 of {status.total_steps:,}" if status.total_steps else "no step yet"
    step, total = status.progress.step, status.total_steps
    loss = "" if status.progress.loss is None else f", loss {status.progress.loss:.4f}"
    text = f"step {step:,} of {total:,} ({step / total:.1%}){loss}" if total else f"step {step:,}"
    left = status.seconds_left
    if status.state == "running" and left is not None:
        ago = max(0.0, time.time() - status.progress.time)
        text += f", {status.progress.images_per_second:,.0f} images/s, ETA {format_seconds(left)}"
        text += f", last step {format_seconds(ago)} ago"
    return text


def _describe_alarms(found: Sequence[Alarm]) -> list[str]:
    """Number of alarms, and the newest with its usual remedy."""
    last = found[-1]
    return [
        f"{len(found)}, the last at step {last.step:,}: {last.symptom}: {last.evidence}",
        f"usual remedy: {last.remedy}",
    ]


def _describe_restarts(found: Sequence[Restart]) -> str:
    if not found:
        return "none"
    shown = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(each.time))} from step "
        f"{each.step:,}; previous start: {each.why}"
        for each in found
    ]
    more = [f"… {len(shown) - 8} more"] if len(shown) > 8 else []
    return f"\n{'':10}".join([str(len(found)), *more, *shown[-8:]])


def _describe_evaluations(submission: Submission) -> list[str]:
    """Evaluations of the finished run, with the states of their jobs."""
    folder = evaluation_logs(submission)
    lines = []
    for place, text in enumerate(submission.then):
        if place >= len(submission.then_jobs):  # on this machine
            lines.append(f"{text} (log in {folder})")
            continue
        job = submission.then_jobs[place]
        state = find_job(job, folder, submission.time)
        known = state.state.lower() if state else "no longer known to SLURM"
        lines.append(f"{text}: {known} (job {job}, log in {folder})")
    return lines


def _unknown(status: RunStatus) -> list[str]:
    """Notes on what is unknown because the scheduler cannot be asked."""
    last = status.submission
    if last is None or last.cluster.scheduler != "slurm" or status.is_complete:
        return []
    if not has_slurm():
        return [
            "note: SLURM is not installed here, so whether the job is waiting or running is unknown"
        ]
    if status.job is None and not has_accounting():
        return [
            "note: SLURM has forgotten the job and keeps no accounting (sacct), so whether it was "
            "canceled, or ran out of time or memory, is unknown"
        ]
    return []


_ERROR = re.compile(r"error:|Error\b|CANCELLED|[Kk]illed|oom|OOM")


def last_error_lines(status: RunStatus) -> list[str]:
    """Lines up to the last error in the log of the process that failed first."""
    if status.submission is None:
        return []
    after = _after_start(events_of(status.run)) or []
    first = first_failure(after) or next((each for each in after if each.kind == "refused"), None)
    if first is None and any(each.kind == "failed" for each in after):
        return []  # consequences of a killed process, which itself left no message
    log = status.submission.log(first.rank if first else 0)
    if not log.is_file():
        return []
    lines = tail_of(log)
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    if not errors:
        return []
    shown = lines[max(0, errors[-1] + 2 - _ERROR_LINES) : errors[-1] + 2]
    return [f"from {log}:", *(f"    {line}" for line in shown)]


def tail_of(file: Path) -> list[str]:
    """The last lines of a text file; the first may be truncated."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return opened.read().decode("utf-8", "replace").splitlines()
