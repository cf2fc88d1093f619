"""Results of `quality.py` as a table for docs/benchmarks.md, and whether they meet requirements.

Pure functions from numbers to lines. Accuracies are in [0, 1] here and printed in percent.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple


class Score(NamedTuple):
    """Accuracies of features on the test images, in [0, 1]."""

    knn: float
    linear: float


@dataclass(frozen=True)
class Point:
    """A run at one of its exports."""

    step: int
    """Number of steps taken."""
    minutes: float
    """Minutes of training, without startup, evaluations and pauses."""
    images: int
    """Number of images trained on, repeats included."""
    loss: float
    """Mean loss since the previous point."""
    rankme: float | None
    """The last logged RankMe; None if the run does not log it."""
    score: Score
    """Accuracies of the export."""


@dataclass(frozen=True)
class Outcome:
    """One run from its first export to its last."""

    name: str
    """The recipe, and the seed if there are several."""
    points: tuple[Point, ...]
    """The exports, in order."""
    untrained: Score
    """Accuracies of the same network at random initialization."""
    num_alarms: int
    """Number of lines in the run's `alarms.jsonl`."""
    widens: bool
    """Whether RankMe must rise; a teacher's features start with a low rank, MAE's may not."""


class Requirement(NamedTuple):
    """Required results of a run on a data set."""

    lead: float
    """Minimum k-NN advantage of the last export over the untrained network, in points."""
    rises: bool
    """Whether k-NN must be higher over the last third of the exports than over the first."""


def table(baselines: Sequence[tuple[str, Score]], outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of Markdown: the baselines, then every run, export by export."""
    lines = [
        "| features | minutes | images seen | k-NN % | linear % | loss | RankMe |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(name, "–", "–", score, "–", "–") for name, score in baselines]
    for outcome in outcomes:
        for point in outcome.points:
            rankme = "–" if point.rankme is None else f"{point.rankme:.1f}"
            lines.append(
                _row(
                    outcome.name,
                    f"{point.minutes:.1f}",
                    f"{point.images:,}",
                    point.score,
                    f"{point.loss:.3f}",
                    rankme,
                )
            )
    return lines


def _row(name: str, minutes: str, images: str, score: Score, loss: str, rankme: str) -> str:
    percent = f"{100 * score.knn:.1f} | {100 * score.linear:.1f}"
    return f"| {name} | {minutes} | {images} | {percent} | {loss} | {rankme} |"


def verdicts(
    title: str, requirement: Requirement, outcomes: Sequence[Outcome], num_test: int
) -> Iterator[str]:
    """One line per run and requirement: the result, the requirement, and whether it is met.

    Args:
        title: Name of the data set.
        requirement: Requirement of the data set.
        outcomes: The runs.
        num_test: Number of test images, which determines the noise.
    """
    for outcome in outcomes:
        last = outcome.points[-1].score
        lead = 100 * (last.knn - outcome.untrained.knn)
        linear = 100 * (last.linear - outcome.untrained.linear)
        margin = 100 * noise(last.knn, outcome.untrained.knn, num_test)
        yield (
            f"{title}: {outcome.name} k-NN − random initialization = {lead:+.1f} points "
            f"(required ≥ {requirement.lead:g}): {met(lead >= requirement.lead)}. "
            f"Linear {linear:+.1f}; with {num_test:,} test images, less than about {margin:.1f} "
            "may be noise"
        )
        if requirement.rises:
            first, end = thirds(100 * point.score.knn for point in outcome.points)
            yield (
                f"{title}: {outcome.name} k-NN rises from {first:.1f} (mean of the first "
                f"third of the exports) to {end:.1f} (last third; required: rises): "
                f"{met(end > first)}"
            )
        if outcome.widens:
            first, end = thirds(point.rankme or 0.0 for point in outcome.points)
            yield (
                f"{title}: {outcome.name} RankMe rises from {first:.1f} to {end:.1f} (thirds "
                f"again; required: rises): {met(end > first)}"
            )
        alarms = outcome.num_alarms or "none"
        yield (
            f"{title}: {outcome.name} alarms: {alarms} (required: none): "
            f"{met(not outcome.num_alarms)}"
        )


def thirds(values: Iterable[float]) -> tuple[float, float]:
    """Means of the first and the last third of the values; single values are noisy."""
    values = list(values)
    count = max(1, len(values) // 3)
    return fmean(values[:count]), fmean(values[-count:])


def noise(first: float, second: float, num_test: int) -> float:
    """Two standard errors of the difference of independent accuracies, as in `ssl-vit eval`."""
    return 2 * ((first * (1 - first) + second * (1 - second)) / num_test) ** 0.5


def met(holds: bool) -> str:
    """Whether a requirement is met, in words."""
    return "met" if holds else "NOT MET"
