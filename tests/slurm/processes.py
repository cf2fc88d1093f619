"""Processes found by what stands in their environment, and their end.

A process's environment is read as it was when its program was started, less what the program wrote
over it since.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Seconds after which what takes one or two is taken for what never comes, under load too.
PATIENCE = 300


def environments() -> dict[int, dict[str, str]]:
    """Process id → its variables, of every living process."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pairs = (pair.partition("=") for pair in os.fsdecode(file.read_bytes()).split("\0"))
            found[int(file.parent.name)] = {name: value for name, _, value in pairs}
    return found


def lives(pid: int) -> bool:
    """A zombie does not: where nobody reaps, it stays for ever."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def kill(find: Callable[[], Iterable[int]]) -> None:
    """Until none is found, those included that were started meanwhile, and all have ended."""
    killed: set[int] = set()

    def are_gone() -> bool:
        found = set(find())
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        return not any(map(lives, killed))

    wait_until("killed processes are gone", are_gone)


def wait_until(what: str, is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Look again and again.

    Raises:
        TimeoutError: It was not so for all these seconds.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}")
        time.sleep(0.01)
