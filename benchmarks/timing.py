"""What both benchmarks share: a line about the machine, and interleaved timing.

A wall time of a shared machine says little, so the two sides take turns (A B A B …) in one process,
and what is quoted is the median of the ratios of neighbouring turns, with its spread.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.distributed import cores_here

Turn = Callable[[], float]
"""Does a fixed amount of work; returns the seconds it took."""

_BUSY = 0.5  # load average above which timings are not to be trusted
_TURN_SECONDS = 0.5  # shorter turns are repeated until they are about this long


@dataclass(frozen=True)
class Pairs:
    """Seconds of two sides that took turns at the same amount of work."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Seconds of the second side over those of the first, pair by pair."""
        return [b / a for a, b in zip(self.first, self.second, strict=True)]

    def describe(self) -> str:
        """The median ratio and its spread."""
        ratios = self.ratios
        return (
            f"{statistics.median(ratios):.3f}× ({min(ratios):.3f}–{max(ratios):.3f}, "
            f"{len(ratios)} pairs)"
        )


def interleave(first: Turn, second: Turn, pairs: int) -> Pairs:
    """Let two sides take turns.

    Args:
        first, second: Warm already.
        pairs: Turns of each.
    """
    seconds = [(first(), second()) for _ in range(pairs)]
    return Pairs(tuple(a for a, _ in seconds), tuple(b for _, b in seconds))


def repeated(work: Callable[[], object], times: int, synchronize: Callable[[], None]) -> Turn:
    """A turn of ``times`` × ``work``.

    Args:
        synchronize: Waits for the device, so that its work falls into the turn it belongs to.
    """

    def turn() -> float:
        synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        synchronize()
        return time.perf_counter() - began

    return turn


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
