"""Watching jobs from a terminal: waiting until they are over, and following a log."""

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit.progress import PLAIN_EVERY_SECONDS
from ssl_vit_launch.schedulers import find, poll_seconds
from ssl_vit_launch.status import read_status
from ssl_vit_launch.submission import Submission, last_submission

_NFS_SECONDS = 60.0  # for which its clients may cache the contents of a folder
_POLL_SECONDS = 0.5


def wait_for_end(submissions: Sequence[Submission]) -> bool:
    """Wait until all are over; whether all runs are complete. Ctrl-C leaves the jobs running."""
    reported = time.monotonic()
    pending = list(submissions)
    try:
        while pending:
            pending = [
                each for each in pending if (state := find(each)) is not None and not state.is_over
            ]
            if pending and time.monotonic() - reported > PLAIN_EVERY_SECONDS:
                reported = time.monotonic()
                print(_progress_line(submissions, pending), file=sys.stderr, flush=True)
            if pending:
                time.sleep(poll_seconds(pending[0]))
    except KeyboardInterrupt:
        first = submissions[0]
        print(
            f"\nthe job keeps running; ssl-vit launch cancel {shlex.quote(first.run)}  ends it",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    return all(_is_complete(each) for each in submissions)


def _is_complete(submission: Submission) -> bool:
    """Whether a run is complete; on NFS its last files may take a while to be visible here."""
    deadline = time.monotonic() + _NFS_SECONDS
    while not (complete := read_status(Path(submission.run)).is_complete):
        state = find(submission)
        if state is None or state.state != "COMPLETED" or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    return complete


def _progress_line(submissions: Sequence[Submission], pending: Sequence[Submission]) -> str:
    status = read_status(Path(pending[0].run))
    step = status.progress.step if status.progress else 0
    more = f"{len(submissions) - len(pending)} of {len(submissions)} runs are over; "
    return (
        f"{more if len(submissions) > 1 else ''}{pending[0].run}: {status.state}, step {step:,} of "
        f"{status.total_steps:,}"
    )


def find_log(run: Path, rank: int) -> tuple[Submission, Path]:
    """The newest submission of a run, and the log of one of its processes.

    Raises:
        UserError: It was never submitted, or has no such process; gives the valid ranks.
    """
    last = last_submission(run)
    count = last.nodes * last.cluster.processes_per_node
    if not 0 <= rank < count:
        raise UserError(f"{run} has no rank {rank}", f"use --rank 0 to {count - 1}")
    return last, last.log(rank)


def show_log(run: Path, rank: int, follow: bool) -> None:
    """Print the log of a process; with ``follow``, until the job is over.

    Raises:
        UserError: As in :func:`find_log`, or no log exists yet and it is not followed.
    """
    submission, log = find_log(run, rank)
    if not log.is_file() and not follow:
        raise UserError(
            f"{log} does not exist yet: the job has not started",
            f"wait for it with --follow; see also  ssl-vit launch status {shlex.quote(str(run))}",
        )
    place, asked = 0, -math.inf
    state = None
    while True:
        # Before reading, so that nothing written in between is missed.
        if follow and time.monotonic() - asked >= poll_seconds(submission):
            state, asked = find(submission), time.monotonic()
        place = _copy_from(log, place)
        if not follow or (state is not None and state.is_over):
            return
        if state is None:
            raise UserError(
                f"the scheduler no longer knows job {submission.job}",
                f"use  ssl-vit launch logs {shlex.quote(str(run))}  without --follow",
            )
        time.sleep(_POLL_SECONDS)


def _copy_from(log: Path, place: int) -> int:
    """Print what follows an offset; returns the new offset."""
    if not log.is_file():
        return place
    with log.open("rb") as file:
        file.seek(place)
        text = file.read()
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    return place + len(text)
