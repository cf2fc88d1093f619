"""What `quality.py` found, as a table for docs/benchmarks.md, and whether it is enough.

Pure: numbers in, lines out. Accuracies are shares in [0, 1] here and percent in what is printed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple


class Score(NamedTuple):
    """What features are worth on the test images, in [0, 1]."""

    knn: float
    linear: float


@dataclass(frozen=True)
class Point:
    """A run at one of its exports."""

    step: int
    """Updates made."""
    minutes: float
    """Of training: start-up, evaluations and pauses left out."""
    images: int
    """Seen, every epoch anew."""
    loss: float
    """Mean since the point before."""
    rankme: float | None
    """The last one logged; None where the run logs none."""
    score: Score


@dataclass(frozen=True)
class Outcome:
    """One run from its first export to its last."""

    name: str
    """The recipe, and the seed where there are several."""
    points: tuple[Point, ...]
    untrained: Score
    """The same network at random initialization."""
    num_alarms: int
    """Lines of the run's `alarms.jsonl`."""
    widens: bool
    """Whether RankMe must rise: a teacher's features begin narrow, those of MAE need not."""


class Requirement(NamedTuple):
    """What a run must show on a data set."""

    lead: float
    """k-NN of the last export over the untrained network, at least, in points."""
    rises: bool
    """Whether k-NN must be higher over the last third of the exports than over the first."""


def table(baselines: Sequence[tuple[str, Score]], outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of markdown: the baselines, then every run export by export."""
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
    """For every run a line of each requirement: what was found, what is required, met or not.

    Args:
        title: Of the data set.
        num_test: M, test images; decides which differences may be chance.
    """
    for outcome in outcomes:
        last = outcome.points[-1].score
        lead = 100 * (last.knn - outcome.untrained.knn)
        linear = 100 * (last.linear - outcome.untrained.linear)
        noise = 100 * _noise(last.knn, outcome.untrained.knn, num_test)
        yield (
            f"{title}: {outcome.name} k-NN − random initialization = {lead:+.1f} points "
            f"(required ≥ {requirement.lead:g}): {_met(lead >= requirement.lead)}. "
            f"Linear {linear:+.1f}; with {num_test:,} test images, less than about {noise:.1f} may "
            "be chance"
        )
        if requirement.rises:
            first, end = thirds(100 * point.score.knn for point in outcome.points)
            yield (
                f"{title}: {outcome.name} k-NN rises from {first:.1f} (mean of the first "
                f"third of the exports) to {end:.1f} (last third; required: rises): "
                f"{_met(end > first)}"
            )
        if outcome.widens:
            first, end = thirds(point.rankme or 0.0 for point in outcome.points)
            yield (
                f"{title}: {outcome.name} RankMe rises from {first:.1f} to {end:.1f} (thirds "
                f"again; required: rises): {_met(end > first)}"
            )
        alarms = outcome.num_alarms or "none"
        yield (
            f"{title}: {outcome.name} alarms: {alarms} (required: none): "
            f"{_met(not outcome.num_alarms)}"
        )


def thirds(values: Iterable[float]) -> tuple[float, float]:
    """Mean of the first and of the last third of what exports gave; single ones are noisy."""
    values = list(values)
    count = max(1, len(values) // 3)
    return fmean(values[:count]), fmean(values[-count:])


def _noise(first: float, second: float, num_test: int) -> float:
    """Two standard errors of a difference of accuracies taken as independent, as `ssl-vit eval`."""
    return 2 * ((first * (1 - first) + second * (1 - second)) / num_test) ** 0.5


def _met(holds: bool) -> str:
    return "met" if holds else "NOT MET"
