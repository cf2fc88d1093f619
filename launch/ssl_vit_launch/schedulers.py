"""State and cancellation of submissions, for either scheduler."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from ssl_vit.errors import UserError, disk_error
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

# A submission without a job id is being queued, unless the command was killed.
_QUEUEING_SECONDS = 60.0

# Time that a canceled job may take to end.
_ENDING_SECONDS = 45.0


def find(submission: Submission) -> JobState | None:
    """Its state according to its scheduler; None if the scheduler does not know it."""
    match submission.cluster.scheduler:
        case "slurm":
            return find_job(submission.job, submission.logs, submission.time)
        case "local":
            return find_local(submission)
        case _:
            assert_never(submission.cluster.scheduler)


def poll_seconds(submission: Submission) -> float:
    """Seconds between two queries of its scheduler; a cluster's is shared."""
    return 5.0 if submission.cluster.scheduler == "slurm" else 0.5


def refuse_active(run: Path) -> None:
    """Refuse a run folder that is in use, by a job or by a process without one.

    Raises:
        UserError: It is; names the job.
    """
    last = newest_submission(run)
    if last is not None:
        name = shlex.quote(str(run))
        if not last.job and time.time() - last.time < _QUEUEING_SECONDS:
            raise UserError(f"{run} is being submitted by another command", "wait for it to finish")
        state = find(last)
        deadline = time.monotonic() + _ENDING_SECONDS
        while state is not None and state.state == "COMPLETING" and time.monotonic() < deadline:
            time.sleep(0.5)
            state = find(last)
        if state is not None and not state.is_over:
            raise UserError(
                f"{run} is in use: its job {last.job} is {state.state}",
                f"ssl-vit launch status {name}  shows its progress; "
                f"ssl-vit launch cancel {name}  ends it",
            )
    RunFolder(run).refuse_locked()


def end(submissions: Sequence[Submission]) -> None:
    """Cancel jobs and their evaluations; they save if time allows.

    Raises:
        UserError: The scheduler reports an error.
        OSError: The run folder of a local job cannot be written to.
    """
    for each in submissions:
        match each.cluster.scheduler:
            case "slurm":
                end_jobs(each.job, *each.then_jobs)
                history_of(Path(each.run)).add("cancelled", each.job)
            case "local":
                # The supervisor, on any machine, checks for it.
                history_of(Path(each.run)).append("cancelled", each.job)
            case _:
                assert_never(each.cluster.scheduler)


def cancel_all(folder: Path) -> list[Submission]:
    """Cancel the job of a run, or the active jobs of all runs in a folder.

    Raises:
        UserError: The run's job is over; the folder has no run, or no job is active.
    """
    if RunFolder(folder).config.is_file():
        return [cancel(folder)]
    found = []
    for run in find_runs(folder):
        with contextlib.suppress(UserError):
            found.append(cancel(run))
    if not found:
        raise UserError(
            f"no run in {folder} has an active job",
            f"ssl-vit launch list {shlex.quote(str(folder))}  shows their states",
        )
    return found


def cancel(run: Path) -> Submission:
    """Cancel a run's job.

    Raises:
        UserError: The run has no job, or it is over.
    """
    last = last_submission(run)
    state = find(last)
    if state is None or state.is_over:
        found = f"is {state.state}" if state else "is no longer known to its scheduler"
        raise UserError(
            f"job {last.job} of {run} {found}",
            f"see  ssl-vit launch status {shlex.quote(str(run))}",
        )
    try:
        end([last])
    except OSError as error:
        problem = f"cannot write into {run}: {error.strerror}"
        raise disk_error(error) or UserError(problem, "ask its owner to cancel it") from None
    return last
