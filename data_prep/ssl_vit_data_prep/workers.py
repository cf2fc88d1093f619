"""Running tasks in several processes, with a progress bar where standard error is a terminal.

Results come in the order of the tasks, whichever is done first.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ssl_vit.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_images: Sequence[int],
    workers: int,
    title: str,
) -> list[Result]:
    """``[function(task) for task in tasks]`` in parallel.

    Args:
        function: At module level, so that another process can import it.
        tasks: Each is pickled.
        num_images: Images in each task, for the rate and the remaining time.
        workers: Processes; 1 works in this one.
        title: In front of the bar.

    Raises:
        UserError: A process was killed from outside.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    results: dict[int, Result] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(title, total=sum(num_images), rate="images/s")
        for place, result in _results(function, tasks, min(workers, len(tasks))):
            results[place] = result
            progress.advance(bar, num_images[place])
            speed = progress.tasks[0].finished_speed or progress.tasks[0].speed
            progress.update(bar, rate=f"{speed:,.0f} images/s" if speed else "images/s")
    return [results[place] for place in range(len(tasks))]


def _results(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """(place, result) of every task, as they are done."""
    if workers <= 1:
        yield from ((place, function(task)) for place, task in enumerate(tasks))
        return
    # Spawned, not forked: the progress bar has a thread, and a fork beside a thread may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_of_interrupts)
    try:
        places = {pool.submit(function, task): place for place, task in enumerate(tasks)}
        for future in as_completed(places):
            yield places[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most often for want of memory",
            "run it again with a smaller --workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _die_of_interrupts() -> None:
    # Ctrl-C reaches every process of the terminal. A worker ends at once, without a traceback; the
    # parent is the one that says what happened.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
