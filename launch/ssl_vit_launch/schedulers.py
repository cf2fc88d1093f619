"""Where a submission is now, whichever scheduler has it."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from ssl_vit.errors import UserError
from ssl_vit.run.folder import RunFolder
from ssl_vit_launch.local import find_local
from ssl_vit_launch.slurm import JobState, end_jobs, find_job
from ssl_vit_launch.submission import (
    Submission,
    find_runs,
    history_of,
    last_submission,
    newest_submission,
)

# A submission without a job's id is being queued, unless the command was killed.
_QUEUEING_SECONDS = 60.0

# That a job may take to end, once it was cancelled.
_ENDING_SECONDS = 45.0


def find(submission: Submission) -> JobState | None:
    """What its scheduler says; None where it says nothing."""
    match submission.cluster.scheduler:
        case "slurm":
            return find_job(submission.job, submission.logs, submission.time)
        case "local":
            return find_local(submission)
        case _:
            assert_never(submission.cluster.scheduler)


def look_seconds(submission: Submission) -> float:
    """How often a scheduler may be asked: a cluster's has others to answer."""
    return 5.0 if submission.cluster.scheduler == "slurm" else 0.5


def refuse_active(run: Path) -> None:
    """Refuse a run folder that a job is in, or that is trained in without one.

    Raises:
        UserError: It is in use; names the job.
    """
    last = newest_submission(run)
    if last is not None:
        name = shlex.quote(str(run))
        if not last.job and time.time() - last.time < _QUEUEING_SECONDS:
            raise UserError(f"{run} is being submitted by another command", "wait for it")
        state = find(last)
        deadline = time.monotonic() + _ENDING_SECONDS
        while state is not None and state.state == "COMPLETING" and time.monotonic() < deadline:
            time.sleep(0.5)
            state = find(last)
        if state is not None and not state.is_over:
            raise UserError(
                f"{run} is in use: its job {last.job} is {state.state}",
                f"ssl-vit launch status {name}  says how it goes; "
                f"ssl-vit launch cancel {name}  ends it",
            )
    RunFolder(run).refuse_locked()


def end(submissions: Sequence[Submission]) -> None:
    """End jobs and their evaluations; what is not saved in time is lost.

    Raises:
        UserError: The scheduler refuses.
    """
    for each in submissions:
        match each.cluster.scheduler:
            case "slurm":
                end_jobs(each.job, *each.then_jobs)
            case "local":
                each.cancellation.touch()  # the supervisor looks for it, on whichever machine
            case _:
                assert_never(each.cluster.scheduler)


def cancel_all(folder: Path) -> list[Submission]:
    """End the job of a run, or those of all runs in a folder that are not over.

    Raises:
        UserError: A run's is over; no run is there, or the jobs of all are over.
    """
    if RunFolder(folder).config.is_file():
        return [cancel(folder)]
    found = []
    for run in find_runs(folder):
        with contextlib.suppress(UserError):
            found.append(cancel(run))
    if not found:
        raise UserError(f"no run in {folder} has a job", f"ssl-vit launch list {folder}")
    return found


def cancel(run: Path) -> Submission:
    """End a run's job.

    Raises:
        UserError: It has none, or it is over.
    """
    last = last_submission(run)
    state = find(last)
    if state is None or state.is_over:
        said = f"is {state.state}" if state else "is not known to its scheduler any more"
        raise UserError(
            f"job {last.job} of {run} {said}", f"ssl-vit launch status {shlex.quote(str(run))}"
        )
    try:
        end([last])
        history_of(run).add("cancelled", last.job)
    except OSError as error:
        raise UserError(f"cannot write into {run}: {error.strerror}", "ask its owner") from None
    return last
