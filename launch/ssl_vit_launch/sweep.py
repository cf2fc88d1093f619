"""One recipe with many settings: a job array, a run folder for each, one table at the end."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from ssl_vit.errors import UserError
from ssl_vit_launch.checks import check_space
from ssl_vit_launch.submission import Submission
from ssl_vit_launch.submit import Request, check, queue

_MOST_RUNS = 1_000  # of an array; SLURM's usual limit
_LONGEST_NAME = 150


def split_values(text: str) -> list[str]:
    """`0.6,0.75` → its parts; commas inside brackets and quotes do not part."""
    parts, depth, quote, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in ")}]":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def combinations(words: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each run of a sweep: all its `path=value` words, and those in which runs differ.

    Raises:
        UserError: A word without `=`; nothing differs; too many runs.
    """
    choices = []
    for word in words:
        path, equals, values = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not of the form path=value,value", "write  seed=0,1,2")
        parts = split_values(values)
        if len(set(parts)) < len(parts):
            raise UserError(f"'{word}' has a value twice", "name every value once")
        choices.append([f"{path}={value}" for value in parts])
    varied = [len(choice) > 1 for choice in choices]
    if not any(varied):
        raise UserError(
            "nothing differs in this sweep", "give several values:  optimizer.clip_norm=0,1,3"
        )
    runs = [(run, tuple(itertools.compress(run, varied))) for run in itertools.product(*choices)]
    if len(runs) > _MOST_RUNS:
        raise UserError(f"{len(runs):,} runs are too many for one sweep", f"at most {_MOST_RUNS:,}")
    return runs


def name_of(words: Sequence[str]) -> str:
    """A run's folder, from the words in which it differs: `mask_ratio=0.6,seed=1`."""
    short = [
        f"{word.partition('=')[0].rpartition('.')[2]}={word.partition('=')[2]}" for word in words
    ]
    return _plain(",".join(short))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "_", name)


def requests_of(request: Request) -> list[Request]:
    """The runs of a sweep.

    Args:
        request: ``run`` is the folder of all runs; ``overrides`` may hold several values each.

    Raises:
        UserError: As :func:`combinations`.
    """
    found = combinations(request.overrides)
    names = [name_of(varied) for _, varied in found]
    # Long values, or ones that differ only in signs that no folder's name should have.
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        names = [f"{place:03d}_{name[:_LONGEST_NAME]}" for place, name in enumerate(names)]
    return [
        replace(request, run=request.run / name, overrides=words)
        for name, (words, _) in zip(names, found, strict=True)
    ]


def submit_sweep(request: Request) -> list[Submission]:
    """Queue all runs of a sweep.

    Args:
        request: As for :func:`requests_of`.

    Raises:
        UserError: As ``submit``, for any of the runs.
    """
    prepared = [check(each) for each in requests_of(request)]
    check_space(prepared)
    return queue(prepared, request, request.run)
