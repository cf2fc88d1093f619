"""What both benchmarks share: a line about the machine, and interleaved timing.

A wall time of a shared machine says little, so the two sides take turns (A B A B …) in one process,
and what is quoted is the median of the ratios of neighboring turns, with its spread.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ssl_vit.distributed import cores_here

_BUSY = 0.5  # load average above which timings are not to be trusted
_TURN_SECONDS = 0.25  # shorter turns are repeated until they are about this long


class Spent(NamedTuple):
    """What one turn cost, in seconds."""

    wall: float
    processor: float
    """Of all cores, waiting left out: what a shared machine disturbs least."""


Turn = Callable[[], Spent]
"""Does a fixed amount of work."""


@dataclass(frozen=True)
class Pairs:
    """Two sides that took turns at the same amount of work."""

    first: tuple[Spent, ...]
    second: tuple[Spent, ...]

    @property
    def walls(self) -> tuple[float, float]:
        """Median wall seconds of a turn of each side."""
        first, second = (
            statistics.median(spent.wall for spent in side) for side in (self.first, self.second)
        )
        return first, second

    def describe(self) -> str:
        """The second side's seconds over the first's: median, spread, and in processor time."""
        walls = [b.wall / a.wall for a, b in zip(self.first, self.second, strict=True)]
        processor = [
            b.processor / a.processor for a, b in zip(self.first, self.second, strict=True)
        ]
        return (
            f"{statistics.median(walls):.3f}× ({min(walls):.3f}–{max(walls):.3f}, "
            f"{len(walls)} pairs; in processor time {statistics.median(processor):.3f}×)"
        )


def interleave(first: Turn, second: Turn, pairs: int) -> Pairs:
    """Let two sides take turns.

    Args:
        first, second: Warm already.
        pairs: Turns of each.
    """
    return Pairs(*take_turns((first, second), pairs))


def take_turns(sides: Sequence[Turn], rounds: int) -> list[tuple[Spent, ...]]:
    """Let several sides take turns, A B C A B C …; what each turn of each side cost."""
    spent = [[side() for side in sides] for _ in range(rounds)]
    return list(zip(*spent, strict=True))


def repeated(work: Callable[[], object], times: int, synchronize: Callable[[], object]) -> Turn:
    """A turn of ``times`` × ``work``.

    Args:
        synchronize: Waits for the device, so that its work falls into the turn it belongs to.
    """

    def turn() -> Spent:
        synchronize()
        wall, processor = time.perf_counter(), processor_seconds()
        for _ in range(times):
            work()
        synchronize()
        return Spent(time.perf_counter() - wall, processor_seconds() - processor)

    return turn


def processor_seconds() -> float:
    """Spent so far by this process, all its threads, and children that have ended."""
    return sum(os.times()[:4])


def times_per_turn(*seconds: float) -> int:
    """How often to repeat work of such durations to fill a turn."""
    return max(1, round(_TURN_SECONDS / min(seconds)))


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def describe_machine(device: str) -> str:
    """Processor, cores, load, torch and threads in one line, and a warning where others work here.

    Read the load before the benchmark's own work adds to it.
    """
    import torch

    # os.getloadavg is a mean over a minute: it still sees what ended just now, which is no harm.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    place = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    line = (
        f"machine   {_cpu_model()}, {cores_here()} cores, load average {load:.2f}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {place}"
    )
    if load > _BUSY:
        line += f"\nWARNING   load average above {_BUSY}: others work here; trust no wall time"
    return line


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def with_defaults(arguments: argparse.Namespace, defaults: dict[str, int]) -> argparse.Namespace:
    """Fill in what was not given on the command line."""
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments
