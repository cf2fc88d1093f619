"""Running tasks in several processes, with the progress of every image.

Results are in the order of the tasks, whichever is done first. A killed process leaves no workers
behind.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ssl_vit.errors import UserError
from ssl_vit.progress import progress

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOOK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # Linux's prctl.h

# Units done, in memory shared with the parent; None in a process that does all the work itself.
_counter: Any = None
_advance: Callable[[int], None] | None = None


def count_done(count: int = 1) -> None:
    """Advance the progress line; called by tasks."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += count
    elif _advance is not None:
        _advance(count)


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    total: int,
    workers: int,
    title: str,
    unit: str = "images",
) -> list[Result]:
    """``[function(task) for task in tasks]`` in parallel.

    Args:
        function: At module level, so that another process can import it; calls
            :func:`count_done`.
        tasks: Each is pickled.
        total: Units of work in all tasks together, for the rate and the remaining time.
        workers: Number of processes; 1 runs the tasks in this one.
        title: Title of the progress line.
        unit: The unit that :func:`count_done` counts.

    Raises:
        UserError: A process was killed from outside.
    """
    global _advance
    with progress(title, total, unit) as advance:
        if min(workers, len(tasks)) > 1:
            results = dict(_in_processes(function, tasks, min(workers, len(tasks)), advance))
            return [results[place] for place in range(len(tasks))]
        _advance = advance
        try:
            return [function(task) for task in tasks]
        finally:
            _advance = None


def _in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Result]]:
    """(place, result) of every task, as they are done."""
    # Spawned, not forked: the progress bar has a thread, and a fork beside a thread may hang.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(counter, os.getpid())
    )
    shown = 0
    try:
        places = {pool.submit(function, task): place for place, task in enumerate(tasks)}
        pending = set(places)
        while pending:
            done, pending = wait(pending, _LOOK_SECONDS, FIRST_COMPLETED)
            now = counter.value
            advance(now - shown)
            shown = now
            for future in done:
                yield places[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, usually out of memory",
            "run the same command again with fewer --workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(counter: Any, parent: int) -> None:
    global _counter
    _counter = counter
    # Ctrl-C reaches every process of the terminal. A worker ends at once, without a traceback; the
    # parent reports what happened.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        # A killed parent must not leave workers that write beside those of the next run.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != parent:
        os._exit(1)
