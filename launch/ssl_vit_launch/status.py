"""How a run goes: from what it wrote, and what its scheduler says. Where the scheduler cannot be
asked, what it alone would know is said to be unknown.
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

_WINDOW = 50  # updates that the speed is taken over
_TAIL_BYTES = 200_000
_ERROR_LINES = 12


@dataclass(frozen=True)
class Progress:
    """The end of a run's `metrics.jsonl`."""

    step: int
    loss: float | None
    images_per_second: float
    time: float
    """Of the last update, in seconds since 1970."""


@dataclass(frozen=True)
class RunStatus:
    """All that is known of a run."""

    run: Path
    recipe: str
    total_steps: int
    """0 before the first start."""
    global_batch_size: int
    progress: Progress | None
    """None before the first update."""
    submission: Submission | None
    job: JobState | None
    is_complete: bool
    restarts: tuple[Restart, ...]
    ended: str
    """What ended the last start; empty while it goes on."""
    checkpoint: int
    """Updates in the newest checkpoint."""
    exports: int
    num_nodes: int
    """Machines of the last start; 0 before it."""
    alarms: tuple[Alarm, ...]
    """Of the run so far."""

    @property
    def asked_nodes(self) -> int:
        """Machines asked for, where they count."""
        last = self.submission
        return last.nodes if last is not None and last.cluster.scheduler == "slurm" else 0

    @property
    def state(self) -> str:
        """In one word of ours."""
        if self.is_complete:
            return "complete"
        if self.job is not None and not self.job.is_over:
            words = {"PENDING": "waiting", "RUNNING": "running", "COMPLETING": "ending"}
            return words.get(self.job.state, self.job.state.lower())
        if self.submission is None:
            return "not submitted"
        if self.job is not None:
            return "ended" if self.job.state == "COMPLETED" else self.job.state.lower()
        return "unknown" if not self.ended else "ended"

    @property
    def seconds_left(self) -> float | None:
        """At the last speed; None where nothing says."""
        if self.progress is None or not self.total_steps or not self.progress.images_per_second:
            return None
        images = (self.total_steps - self.progress.step) * self.global_batch_size
        return images / self.progress.images_per_second


def read_status(run: Path) -> RunStatus:
    """Look at a run folder and ask its scheduler.

    Raises:
        UserError: No run lives there.
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
    """What happened since the last start; None where there was none."""
    starts = [place for place, event in enumerate(events) if event.kind == "started"]
    return list(events[starts[-1] + 1 :]) if starts else None


def _end_of(events: Sequence[Event], submission: Submission | None) -> str:
    """What ended the last start; empty where the run is complete, or the job never began."""
    # What ended an earlier job says nothing of this one.
    since = submission.time if submission is not None else 0.0
    mine = [event for event in events if event.time >= since]
    after = _after_start(mine)
    if after is None:
        return "cancelled before it began" if any(e.kind == "cancelled" for e in mine) else ""
    return "" if any(event.kind == "completed" for event in after) else why_ended(after)


class _MetricsLine(Document):
    step: Count
    time: Seconds
    loss: float | None = None
    images_per_second: float | None = None


def read_progress(metrics: Path) -> Progress | None:
    """The last updates of a `metrics.jsonl`, read from its end; None where there are none."""
    if not metrics.is_file():
        return None
    # The first is cut, the last may be on its way.
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
    """Lines for a person."""
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
        if status.state != "cancelled":
            lines += last_error_lines(status)
        if status.submission is not None:
            lines.append(f"go on with: ssl-vit launch resubmit {shlex.quote(str(status.run))}")
    return lines


def _describe_saved(status: RunStatus) -> str:
    exports = f"{status.exports} export{'s' * (status.exports != 1)}"
    if not status.checkpoint:
        return f"no checkpoint yet, {exports}"
    return f"checkpoint of update {status.checkpoint:,}, {exports}"


def _describe_state(status: RunStatus) -> str:
    parts = [status.state]
    if status.job is not None and not status.job.is_over:
        if status.job.nodes:
            parts.append(f"on {status.job.nodes}")
        if 0 < status.num_nodes < status.asked_nodes and status.state == "running":
            parts.append(f"({status.num_nodes} of {status.asked_nodes} nodes)")
        if status.job.reason and status.job.state == "PENDING":
            again = " (it starts again in a moment)" if status.job.reason == "BeginTime" else ""
            parts.append(f"because of {status.job.reason}{again}")
    if status.submission is not None:
        parts.append(f"(job {status.submission.job}, {status.submission.cluster.scheduler})")
    return " ".join(parts)


def _describe_progress(status: RunStatus) -> str:
    if status.progress is None:
        return f"no update yet of {status.total_steps:,}" if status.total_steps else "no update yet"
    made, total = status.progress.step, status.total_steps
    loss = "" if status.progress.loss is None else f", loss {status.progress.loss:.4f}"
    text = (
        f"update {made:,} of {total:,} ({made / total:.1%}){loss}" if total else f"update {made:,}"
    )
    left = status.seconds_left
    if status.state == "running" and left is not None:
        ago = max(0.0, time.time() - status.progress.time)
        text += f", {status.progress.images_per_second:,.0f} images/s, ETA {format_seconds(left)}"
        text += f", last update {format_seconds(ago)} ago"
    return text


def _describe_alarms(found: Sequence[Alarm]) -> list[str]:
    """The newest, with what usually cures it, and how many there were."""
    last = found[-1]
    return [
        f"{len(found)}, the last at update {last.step:,}: {last.symptom}: {last.evidence}",
        f"what usually cures it: {last.remedy}",
    ]


def _describe_restarts(found: Sequence[Restart]) -> str:
    if not found:
        return "none"
    shown = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(each.time))} from update "
        f"{each.step:,}; before it: {each.why}"
        for each in found
    ]
    more = [f"… {len(shown) - 8} more"] if len(shown) > 8 else []
    return f"\n{'':10}".join([str(len(found)), *more, *shown[-8:]])


def _describe_evaluations(submission: Submission) -> list[str]:
    """The evaluations of the end, with their jobs' states."""
    folder = evaluation_logs(submission)
    lines = []
    for place, text in enumerate(submission.then):
        if place >= len(submission.then_jobs):  # on this machine
            lines.append(f"{text} (log in {folder})")
            continue
        job = submission.then_jobs[place]
        state = find_job(job, folder, submission.time)
        word = state.state.lower() if state else "not known to SLURM any more"
        lines.append(f"{text}: {word} (job {job}, log in {folder})")
    return lines


def _unknown(status: RunStatus) -> list[str]:
    """What only a scheduler that cannot be asked would know."""
    last = status.submission
    if last is None or last.cluster.scheduler != "slurm" or status.is_complete:
        return []
    if not has_slurm():
        return ["note: no SLURM commands here: whether the job waits or runs is not known"]
    if status.job is None and not has_accounting():
        return [
            "note: SLURM has forgotten the job and keeps no accounting (sacct): whether it was "
            "cancelled, or ran out of time or memory, is not known"
        ]
    return []


_ERROR = re.compile(r"error:|Error\b|CANCELLED|[Kk]illed|oom|OOM")


def last_error_lines(status: RunStatus) -> list[str]:
    """The lines up to the last error in the log of the process that failed first."""
    if status.submission is None:
        return []
    after = _after_start(events_of(status.run)) or []
    first = first_failure(after) or next((each for each in after if each.kind == "refused"), None)
    if first is None and any(each.kind == "failed" for each in after):
        return []  # echoes of a process that was killed, which says nothing itself
    log = status.submission.log(first.rank if first else 0)
    if not log.is_file():
        return []
    lines = tail_of(log)
    places = [place for place, line in enumerate(lines) if _ERROR.search(line)]
    if not places:
        return []
    shown = lines[max(0, places[-1] + 2 - _ERROR_LINES) : places[-1] + 2]
    return [f"from {log}:", *(f"    {line}" for line in shown)]


def tail_of(file: Path) -> list[str]:
    """The last lines of a text file, the first of them perhaps cut."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return opened.read().decode("utf-8", "replace").splitlines()
