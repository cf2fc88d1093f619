"""For all benchmarks: a line about the machine, and interleaved timing.

Wall times on a shared machine are unreliable, so the two sides take turns (A B A B …) in one
process, and the result is the median of the ratios of neighboring turns, with its spread.
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

_BUSY = 0.5  # load average above which timings are unreliable
_TURN_SECONDS = 0.25  # shorter turns are repeated until they are about this long


class Spent(NamedTuple):
    """Cost of one turn, in seconds."""

    wall: float
    """Elapsed time."""
    processor: float
    """CPU time of all cores, without waiting; least affected by other load on the machine."""


Turn = Callable[[], Spent]
"""Does a fixed amount of work."""


@dataclass(frozen=True)
class Pairs:
    """Two sides that took turns at the same work."""

    first: tuple[Spent, ...]
    second: tuple[Spent, ...]

    @property
    def walls(self) -> tuple[float, float]:
        """Median wall seconds per turn of each side."""
        first, second = (
            statistics.median(spent.wall for spent in side) for side in (self.first, self.second)
        )
        return first, second

    def describe(self) -> str:
        """Ratio of the second side's seconds to the first's: median, spread, and in CPU time."""
        walls = [b.wall / a.wall for a, b in zip(self.first, self.second, strict=True)]
        processor = [
            b.processor / a.processor for a, b in zip(self.first, self.second, strict=True)
        ]
        return (
            f"{statistics.median(walls):.3f}× ({min(walls):.3f}–{max(walls):.3f}, "
            f"{len(walls)} pairs; in CPU time {statistics.median(processor):.3f}×)"
        )


def interleave(first: Turn, second: Turn, pairs: int) -> Pairs:
    """Let two sides take turns.

    Args:
        first, second: The sides, already warmed up.
        pairs: Turns per side.
    """
    return Pairs(*take_turns((first, second), pairs))


def take_turns(sides: Sequence[Turn], rounds: int) -> list[tuple[Spent, ...]]:
    """Let several sides take turns, A B C A B C …; returns the cost of each side's turns."""
    spent = [[side() for side in sides] for _ in range(rounds)]
    return list(zip(*spent, strict=True))


def repeated(work: Callable[[], object], times: int, synchronize: Callable[[], object]) -> Turn:
    """A turn of ``times`` × ``work``.

    Args:
        work: Called without arguments.
        times: Calls per turn.
        synchronize: Waits for the device, so that its work counts in the right turn.
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
    """CPU seconds so far of this process, all its threads, and children that have ended."""
    return sum(os.times()[:4])


def times_per_turn(*seconds: float) -> int:
    """Number of repetitions of work of these durations that fill a turn."""
    return max(1, round(_TURN_SECONDS / min(seconds)))


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def describe_machine(device: str) -> str:
    """Processor, cores, load, torch and threads in one line, and a warning if the machine is busy.

    Read the load before the benchmark's own work adds to it.
    """
    import torch

    # os.getloadavg is a mean over a minute, so it includes work that has just ended; that is fine.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    place = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    line = (
        f"machine   {_cpu_model()}, {cores_here()} cores, load average {load:.2f}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {place}"
    )
    if load > _BUSY:
        line += f"\nWARNING   load average above {_BUSY}: machine busy, wall times unreliable"
    return line


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def with_defaults(arguments: argparse.Namespace, defaults: dict[str, int]) -> argparse.Namespace:
    """Fill in options that were not given on the command line."""
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments
