"""Results of `quality.py --only beit` as a table, and whether they meet requirements.

Pure functions from numbers to lines. Accuracies are in [0, 1] here and printed in percent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from quality_table import Score, met, noise

READOUTS = {
    "cls": "class token",
    "mean": "mean of patches",
    "inner": "mean of patches after two thirds of the blocks",
}
LEAST_USED = 0.8
"""Share of its codes that a trained tokenizer must use."""

Protocol = Literal["knn", "linear"]
_PROTOCOLS: dict[Protocol, str] = {"knn": "k-NN", "linear": "linear probe"}
_HEAD = (
    "| features | seed | CPU minutes | steps | class token | patches | inner block "
    "| codes used | perplexity | explained | token accuracy % (unigram) |"
)
_RULE = "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"


class Codes(NamedTuple):
    """How a tokenizer uses its codebook."""

    used: float
    """Share of the codes that occur in a step, in [0, 1]."""
    perplexity: float
    """Exponential of the entropy of their distribution in a step, from 1 to ``num``."""
    num: int
    """Size of the codebook."""
    explained: float | None = None
    """Share of the variation of the targets that the codes explain; None if there are none."""


@dataclass(frozen=True)
class Result:
    """One row of the benchmark and one of its seeds."""

    key: str
    title: str
    seed: int
    cpu_minutes: tuple[float, ...]
    """Of the tokenizer, if it was trained, and of the network."""
    steps: tuple[int, ...]
    """Likewise."""
    scores: dict[str, Score]
    """By readout."""
    untrained: dict[str, Score]
    """By readout, of the same network at random initialization."""
    codes: Codes | None
    """Of the tokenizer; None without one."""
    token_accuracy: float | None
    """Share of hidden patches whose token was predicted, over the last tenth of the steps."""
    unigram_accuracy: float | None
    """The same for the commonest token of earlier steps."""
    num_alarms: int
    """Lines in `alarms.jsonl` of all its runs."""

    @property
    def is_tokenizer_trained(self) -> bool:
        """Whether its tokenizer learned."""
        return self.codes is not None and len(self.steps) > 1


def table(
    pixels: Score, untrained: Sequence[tuple[str, dict[str, Score]]], results: Sequence[Result]
) -> list[str]:
    """Lines of Markdown: the baselines, then every run.

    Args:
        pixels: Of raw pixels.
        untrained: (name, scores by readout) of untrained networks.
        results: The runs.
    """
    empty = " | –" * 4
    lines = [_HEAD, _RULE]
    lines.append(f"| raw pixels | – | – | – | {_pair(pixels)} (as they are) | – | –{empty} |")
    lines += [
        f"| untrained, {name} | – | – | – | {_scores(scores)}{empty} |"
        for name, scores in untrained
    ]
    return lines + [_line(result) for result in results]


def _line(result: Result) -> str:
    minutes = " + ".join(f"{each:.1f}" for each in result.cpu_minutes)
    steps = " + ".join(f"{each:,}" for each in result.steps)
    codes = result.codes
    tokens, explained = "– | –", "–"
    if codes:
        tokens = f"{100 * codes.used:.0f} % of {codes.num} | {codes.perplexity:.1f}"
    if codes and codes.explained is not None:
        explained = f"{100 * codes.explained:.0f} %"
    accuracy = "–"
    if result.token_accuracy is not None and result.unigram_accuracy is not None:
        accuracy = f"{100 * result.token_accuracy:.1f} ({100 * result.unigram_accuracy:.1f})"
    return (
        f"| {result.title} | {result.seed} | {minutes} | {steps} | {_scores(result.scores)} "
        f"| {tokens} | {explained} | {accuracy} |"
    )


def _scores(scores: dict[str, Score]) -> str:
    return " | ".join(_pair(scores[readout]) for readout in READOUTS)


def _pair(score: Score) -> str:
    return f"{100 * score.knn:.1f}, {100 * score.linear:.1f}"


class Best(NamedTuple):
    """A row's best readout by one protocol."""

    readout: str
    accuracy: float
    """Mean over its seeds, in [0, 1]."""

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ({READOUTS[self.readout]})"


def best(scores: Sequence[dict[str, Score]], protocol: Protocol) -> Best:
    """The readout with the best mean over the seeds.

    Args:
        scores: By readout, for each seed.
        protocol: Which of both accuracies.
    """
    means = {
        readout: fmean(getattr(each[readout], protocol) for each in scores) for readout in READOUTS
    }
    readout = max(means, key=lambda name: means[name])
    return Best(readout, means[readout])


def verdicts(title: str, results: Sequence[Result], num_test: int) -> Iterator[str]:
    """One line per requirement: what was found, what is required, and whether it is met.

    Args:
        title: Name of the data set.
        results: The runs.
        num_test: Number of test images, which determines the noise.
    """
    for result in results:
        if result.codes is not None and result.is_tokenizer_trained:
            used = result.codes.used
            yield (
                f"{title}: {result.title}, seed {result.seed}: the tokenizer uses "
                f"{100 * used:.0f} % of its codes (required ≥ {100 * LEAST_USED:.0f} %): "
                f"{met(used >= LEAST_USED)}"
            )
    for key in dict.fromkeys(result.key for result in results):
        if key.startswith("features"):
            yield from _of_features(title, key, results, num_test)
    for result in results:
        if result.num_alarms:
            yield f"{title}: {result.title}, seed {result.seed}: {result.num_alarms} alarms"


def _of_features(title: str, key: str, results: Sequence[Result], num_test: int) -> Iterator[str]:
    """`features` against the placeholder, its untrained network and MAE, by both protocols."""
    chosen = [result for result in results if result.key == key]
    others = {
        other: [result.scores for result in results if result.key == other]
        for other in ("placeholder", "mae")
    }
    for protocol, name in _PROTOCOLS.items():
        ours = best([result.scores for result in chosen], protocol)
        runs = "1 run" if len(chosen) == 1 else f"mean of {len(chosen)} runs"
        begins = f"{title}: {chosen[0].title}, {name}, {runs}, {ours}"
        untrained = best([result.untrained for result in chosen], protocol)
        compared = [("its untrained network", untrained)]
        if others["placeholder"]:
            compared.append(("the placeholder", best(others["placeholder"], protocol)))
        for what, other in compared:
            lead = 100 * (ours.accuracy - other.accuracy)
            margin = 100 * noise(ours.accuracy, other.accuracy, num_test)
            yield (
                f"{begins}: {lead:+.1f} points over {what}, {other} (required > 0): "
                f"{met(lead > 0)}; with {num_test:,} test images, less than about {margin:.1f} "
                "may be noise"
            )
        if others["mae"]:
            mae = best(others["mae"], protocol)
            lead = 100 * (ours.accuracy - mae.accuracy)
            margin = 100 * noise(ours.accuracy, mae.accuracy, num_test)
            reached = "reached" if lead >= -margin else "NOT REACHED"
            yield (
                f"{begins}: {lead:+.1f} points over MAE, {mae} (aim: level, that is not more than "
                f"the noise of {margin:.1f} below): {reached}"
            )
