"""Finding processes by their environment, and ending them.

A process's environment is read as it was when its program started, except for what the program has
overwritten since.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Timeout in seconds for what usually takes one or two, with room for a machine under load.
PATIENCE = 300


def environments() -> dict[int, dict[str, str]]:
    """Process id → environment variables, for every live process."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pairs = (pair.partition("=") for pair in os.fsdecode(file.read_bytes()).split("\0"))
            found[int(file.parent.name)] = {name: value for name, _, value in pairs}
    return found


def lives(pid: int) -> bool:
    """Whether a process is alive; a zombie is not, since it may never be reaped."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def kill(find: Callable[[], Iterable[int]]) -> None:
    """Kill until none is found, including any started meanwhile, and all have ended."""
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
    """Poll a condition.

    Raises:
        TimeoutError: It was not met in time.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}")
        time.sleep(0.01)
