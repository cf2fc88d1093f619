"""Sweeps: one recipe with many combinations of settings, a run folder each, as a job array."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from ssl_vit.errors import UserError
from ssl_vit_launch.checks import check_space
from ssl_vit_launch.submission import Submission
from ssl_vit_launch.submit import Request, check, queue

_MAX_RUNS = 1_000  # SLURM's usual limit for an array
_MAX_NAME_LENGTH = 150


def split_values(text: str) -> list[str]:
    """The parts of `0.6,0.75`; commas inside brackets or quotes do not separate."""
    parts, depth, quote, start = [], 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def combinations(words: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each run of a sweep: all its `path=value` words, and those that differ between runs.

    Raises:
        UserError: A word without `=`; a repeated value; nothing varies; too many runs.
    """
    choices = []
    for word in words:
        path, equals, values = word.partition("=")
        if not equals:
            raise UserError(
                f"'{word}' is not of the form path=value,value", "for example  seed=0,1,2"
            )
        parts = split_values(values)
        if len(set(parts)) < len(parts):
            raise UserError(f"'{word}' repeats a value", "give every value once")
        choices.append([f"{path}={value}" for value in parts])
    varied = [len(choice) > 1 for choice in choices]
    if not any(varied):
        raise UserError(
            "no setting of this sweep varies",
            "give a setting several values, for example  optimizer.clip_norm=0,1,3",
        )
    runs = [(run, tuple(itertools.compress(run, varied))) for run in itertools.product(*choices)]
    if len(runs) > _MAX_RUNS:
        raise UserError(
            f"{len(runs):,} runs are too many for one sweep",
            f"split it into sweeps of at most {_MAX_RUNS:,} runs",
        )
    return runs


def name_of(words: Sequence[str]) -> str:
    """Name of a run folder, from the settings that vary: `mask_ratio=0.6,seed=1`."""
    short = [
        f"{word.partition('=')[0].rpartition('.')[2]}={word.partition('=')[2]}" for word in words
    ]
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "_", ",".join(short))


def requests_of(request: Request) -> list[Request]:
    """One request per run of a sweep.

    Args:
        request: ``run`` is the folder for all runs; each of ``overrides`` may have several values.

    Raises:
        UserError: As :func:`combinations`.
    """
    found = combinations(request.overrides)
    names = [name_of(varied) for _, varied in found]
    # Long values, or values that differ only in characters that are replaced.
    if len(set(names)) < len(names) or max(map(len, names)) > _MAX_NAME_LENGTH:
        names = [f"{index:03d}_{name[:_MAX_NAME_LENGTH]}" for index, name in enumerate(names)]
    return [
        replace(request, run=request.run / name, overrides=words)
        for name, (words, _) in zip(names, found, strict=True)
    ]


def submit_sweep(request: Request) -> list[Submission]:
    """Queue all runs of a sweep.

    Args:
        request: As for :func:`requests_of`.

    Raises:
        UserError: As ``check`` and ``queue`` of submit.py, for any of the runs.
    """
    prepared = [check(each) for each in requests_of(request)]
    check_space(prepared)
    return queue(prepared, request, request.run)
