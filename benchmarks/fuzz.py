"""Fuzzing: runs commands on damaged and hostile input, and checks how they end.

python benchmarks/fuzz.py --seconds 60 --seed 1 [--kinds index,words]

Each trial changes one file, argument, response or disk at random and runs one command in its own
process. It must exit with 0, with 1 where its help allows that, or with 2 and an error and a fix of
one line each, within its limits of time and memory and without a traceback; its output must be
consistent. Prints every failure with its change, and a table; exits with 1 if there was a failure.
The same seed makes the same changes.
"""

import argparse
import importlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_files import Images, Tars
from fuzz_kinds import Disks, Indexes, Profiles, RunFolders, Runs, Servers, Words
from fuzz_trial import Kind, judge

# Imported once, so that the child processes need not.
PRELOADED = (
    *("ssl_vit.commands", "ssl_vit.cost.estimate", "ssl_vit.run.pretrain", "ssl_vit.data.sources"),
    *("ssl_vit_data_prep.commands", "ssl_vit_data_prep.check", "ssl_vit_data_prep.reshard"),
    *("ssl_vit_data_prep.pack", "ssl_vit_data_prep.index", "ssl_vit.data.decode", "tifffile"),
    *("ssl_vit_launch.commands", "ssl_vit_launch.listing", "ssl_vit_launch.submit"),
    *("rich.table", "webdataset", "fsspec.implementations.http", "aiohttp"),
)

KINDS: dict[str, Callable[[Path], Kind]] = {
    "index": Indexes,
    "run": RunFolders,
    "words": Words,
    "profile": Profiles,
    "image": Images,
    "tar": Tars,
    "http": Servers,
    "resume": Runs,
    "disk": Disks,
}


@dataclass
class Found:
    """Results of the trials of one kind."""

    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    listed = ", ".join(KINDS)
    parser.add_argument("--kinds", help=f"of {listed}; default: those that do not train")
    options = parser.parse_args(arguments)
    names = options.kinds.split(",") if options.kinds else list(KINDS)[:-2]
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"unknown kind {unknown[0]}; choose from {', '.join(KINDS)}")
    for module in PRELOADED:
        importlib.import_module(module)
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            kind = KINDS[name](Path(scratch, name))
            found[name] = _fuzz(name, kind, options.seconds / len(names), options.seed)
    print(f"{'kind':10} {'trials':>7} {'exit 0':>7} {'1':>5} {'2':>6} {'slowest':>8} {'failed':>7}")
    for name, one in found.items():
        codes = one.codes
        print(
            f"{name:10} {codes.total():7} {codes[0]:7} {codes[1]:5} {codes[2]:6} "
            f"{one.slowest:7.1f}s {len(one.failures):7}"
        )
    return int(any(one.failures for one in found.values()))


def _fuzz(name: str, kind: Kind, seconds: float, seed: int) -> Found:
    found, rng, end = Found(), random.Random(f"{name} {seed}"), time.monotonic() + seconds
    reported: Counter[str] = Counter()
    while time.monotonic() < end:
        trial = kind.trial(rng)
        began = time.monotonic()
        code, output = kind.attempt(trial.words)
        found.slowest = max(found.slowest, time.monotonic() - began)
        found.codes[code] += 1
        problem = judge(code, output, trial.may_be_1)
        left = trial.check(code)
        if problem := problem or left:
            found.failures.append(problem)
            reported[problem[:60]] += 1
            if reported[problem[:60]] <= 2:
                print(f"FAILED {name}: {trial.change}: {' '.join(trial.words[:2])}: {problem}")
        if found.slowest > kind.seconds / 4 and time.monotonic() - began >= found.slowest:
            print(f"slow {name}: {trial.change}: {' '.join(trial.words[:2])}")
    return found


if __name__ == "__main__":
    sys.exit(main())
