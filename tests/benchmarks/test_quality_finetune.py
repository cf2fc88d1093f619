"""The rows and verdicts of `quality.py --only finetune`, without training."""

import sys
from typing import Any

from tests.benchmarks.test_quality import BENCHMARKS

sys.path.append(str(BENCHMARKS))  # last: its files have names that others might have

from quality_beit import seeds_of
from quality_beit_runs import ROWS, Spent
from quality_finetune import TUNED, Judged, _line, _verdicts


def judged(key: str, seed: int, accuracy: float, linear: float | None) -> Judged:
    beside = {} if linear is None else {"frozen, linear probe": {"accuracy": linear}}
    scores: dict[str, Any] = {"accuracy": accuracy, "balanced_accuracy": 0.5, "auroc": None}
    return Judged(TUNED[key], seed, (Spent(7, 90.0, 1),), {**scores, "beside": beside})


def test_every_start_is_a_row_that_can_be_pretrained():
    assert {row.start for row in TUNED.values()} <= {"", *ROWS}
    several = {key for key, row in TUNED.items() if len(seeds_of(row, None, is_smoke=False)) == 3}
    assert several == {"mae-96", "mae-192", "scratch-192"}


def test_a_line_has_dashes_where_nothing_was_measured():
    assert _line(judged("scratch-192", 2, 0.71, None)) == (
        "| from scratch, 192 px, seed 2 | 1.5 | 7 | 71.0 | 50.0 | – | – | – |"
    )


def test_means_over_seeds_are_compared_with_the_best_probe_and_with_scratch():
    runs = [judged("mae-96", 0, 0.7, 0.8), judged("scratch-192", 0, 0.75, None)]
    runs += [judged("mae-192", seed, 0.77 + 0.02 * seed, 0.78) for seed in (0, 1)]
    probe, scratch = _verdicts("ELPV", runs, 664)
    assert probe.endswith(
        "78.0, linear probe of the same exports 80.0 (required: at least that): NOT MET"
    )
    assert "from scratch 75.0 (required: less): met" in scratch
    assert list(_verdicts("ELPV", runs[:2], 664)) == []
