"""What a run's processes wrote: one file for each, through all its starts."""

import math
import shlex
import sys
import time
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit_launch.schedulers import find, look_seconds
from ssl_vit_launch.submission import Submission, last_submission

_LOOK_SECONDS = 0.5


def find_log(run: Path, rank: int) -> tuple[Submission, Path]:
    """The newest submission of a run, and the log of one of its processes.

    Raises:
        UserError: It was never submitted, or has no such process; says which there are.
    """
    last = last_submission(run)
    most = last.nodes * last.cluster.processes_per_node
    if not 0 <= rank < most:
        raise UserError(f"no process {rank} in {run}", f"--rank 0 to {most - 1}")
    return last, last.log(rank)


def show_log(run: Path, rank: int, follow: bool) -> None:
    """Print it; with ``follow`` until the job is over.

    Raises:
        UserError: As :func:`find_log`; or nothing was written yet, and it is not followed.
    """
    submission, log = find_log(run, rank)
    if not log.is_file() and not follow:
        raise UserError(
            f"{log} is not there yet: the job has not begun",
            f"ssl-vit launch status {shlex.quote(str(run))},  or --follow to wait for it",
        )
    place, asked = 0, -math.inf
    state = None
    while True:
        # Before reading: what is written between the two is read in the next turn.
        if follow and time.monotonic() - asked >= look_seconds(submission):
            state, asked = find(submission), time.monotonic()
        place = _copy_from(log, place)
        if not follow or (state is not None and state.is_over):
            return
        if state is None:
            raise UserError(
                f"the scheduler does not know job {submission.job} any more",
                f"ssl-vit launch logs {shlex.quote(str(run))}  without --follow",
            )
        time.sleep(_LOOK_SECONDS)


def _copy_from(log: Path, place: int) -> int:
    """Print what lies behind a place; returns the new end."""
    if not log.is_file():
        return place
    with log.open("rb") as file:
        file.seek(place)
        text = file.read()
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    return place + len(text)
