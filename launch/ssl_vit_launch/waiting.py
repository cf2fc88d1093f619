"""Waiting until jobs are over, printing progress now and then."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.progress import PLAIN_EVERY_SECONDS
from ssl_vit_launch.schedulers import find, poll_seconds
from ssl_vit_launch.status import read_status
from ssl_vit_launch.submission import Submission

_NFS_SECONDS = 60.0  # for which its clients may cache the contents of a folder


def wait(submissions: Sequence[Submission]) -> bool:
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
