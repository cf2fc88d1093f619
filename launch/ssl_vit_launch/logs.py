"""The logs of a run's processes: one file per process, across all starts."""

import math
import shlex
import sys
import time
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit_launch.schedulers import find, poll_seconds
from ssl_vit_launch.submission import Submission, last_submission

_POLL_SECONDS = 0.5


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
        UserError: As :func:`find_log`; or there is no log yet, and it is not followed.
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
