"""Where a submission is now, whichever scheduler has it."""

from pathlib import Path
from typing import assert_never

from ssl_vit.errors import UserError
from ssl_vit.run_folder import RunFolder
from ssl_vit_launch.local import end_local, find_local
from ssl_vit_launch.slurm import JobState, end_job, find_job
from ssl_vit_launch.submission import Submission, history_of, newest_submission


def find(submission: Submission) -> JobState | None:
    """What its scheduler says; None where it says nothing."""
    match submission.cluster.scheduler:
        case "slurm":
            return find_job(submission)
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
    if last is not None and (state := find(last)) is not None and not state.is_over:
        raise UserError(
            f"{run} is in use: its job {last.job} is {state.state}",
            f"ssl-vit launch status {run}  says how it goes; ssl-vit launch cancel {run}  ends it",
        )
    RunFolder(run).refuse_locked()


def cancel(run: Path) -> Submission:
    """End a run's job; what it has not saved is lost only if it does not save in time.

    Raises:
        UserError: It has none, or it is over.
    """
    last = newest_submission(run)
    if last is None:
        raise UserError(f"{run} was never submitted", "check the path")
    state = find(last)
    if state is None or state.is_over:
        said = f"is {state.state}" if state else "is not known to its scheduler any more"
        raise UserError(f"job {last.job} of {run} {said}", f"ssl-vit launch status {run}")
    history_of(run).add("cancelled", last.job)
    match last.cluster.scheduler:
        case "slurm":
            end_job(last.job)
        case "local":
            end_local(last)
        case _:
            assert_never(last.cluster.scheduler)
    return last
