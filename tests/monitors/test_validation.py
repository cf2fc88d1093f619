"""Measures of validation against loops, and which step is the best."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_vit.monitors.probes import summary
from ssl_vit.monitors.validation import Validation
from ssl_vit.objectives.method import Validating

LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 3, 6, 6, 2])
NUM_CLASSES = 8


class Answers:
    """An "objective" whose logits are in the images' pixels."""

    def logits(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :NUM_CLASSES].float() / 50


def validation(rank: int = 0, world_size: int = 1, patience: int = 0) -> Validation:
    pixels = torch.randint(0, 256, (11, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    count = -(-len(LABELS) // world_size)
    places = (torch.arange(count) * world_size + rank) % len(LABELS)
    mine, settings = pixels.to(torch.uint8)[places], Validating("", 0.1, 10, patience)
    return Validation(mine, places, LABELS.numpy(), NUM_CLASSES, settings)


def measured(world_size: int) -> dict[str, float]:
    model: Any = Answers()
    ranks = [validation(rank, world_size) for rank in range(world_size)]
    return ranks[0].measure([each.predict(model, torch.device("cpu")) for each in ranks])


def test_measures_are_those_of_a_loop() -> None:
    logits = Answers().logits(validation().images).tolist()
    loss, right, in_top, by_class = 0.0, 0, 0, {}
    for row, label in zip(logits, LABELS.tolist(), strict=True):
        loss += math.log(sum(map(math.exp, row))) - row[label]
        order = sorted(range(NUM_CLASSES), key=lambda place: -row[place])
        right += order[0] == label
        in_top += label in order[:5]
        hits, count = by_class.get(label, (0, 0))
        by_class[label] = (hits + (order[0] == label), count + 1)
    recalls = [hits / count for hits, count in by_class.values()]
    expected = {
        "validation/loss": loss / 11,
        "validation/accuracy": right / 11,
        "validation/balanced_accuracy": sum(recalls) / len(recalls),
        "validation/top5_accuracy": in_top / 11,
    }
    assert measured(1) == pytest.approx(expected, rel=1e-5)
    assert "validation " in summary(expected)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_measure_together_what_one_measures(world_size: int) -> None:
    assert measured(world_size) == pytest.approx(measured(1), rel=1e-6)


def line(step: int, balanced: float, loss: float | None) -> dict[str, Any]:
    return {"step": step, "validation/balanced_accuracy": balanced, "validation/loss": loss}


def test_the_best_step_is_the_highest_accuracy_and_then_the_lowest_loss() -> None:
    lines = [
        *(line(10, 0.5, 0.9), line(20, 0.5, 0.7), line(30, 0.4, 0.1), line(40, 0.5, 0.8)),
        *(line(50, 0.5, None), line(60, 0.5, 0.7)),
    ]
    ours = validation(patience=4)
    judged = [ours.judge(each["step"], each) for each in lines]
    assert judged == [True, True, False, False, False, False]
    assert ours.best_step == 20
    assert ours.is_over
    again = validation(patience=5)
    for each in lines:
        again.judge(each["step"], each)
    assert (again.best_step, again.is_over) == (20, False)


def test_without_patience_it_is_never_over() -> None:
    ours = validation()
    for step in range(1, 100):
        ours.judge(step, line(step, 0.5, 1.0))
    assert not ours.is_over


def test_a_loss_that_is_not_finite_is_judged_alike_if_it_is_missing() -> None:
    """As it is in the file that a resumed run reads."""
    nan = {"validation/balanced_accuracy": 0.5, "validation/loss": math.nan}
    missing = {"validation/balanced_accuracy": 0.5}
    for first in (nan, missing):
        for second in (nan, missing):
            ours = validation()
            assert ours.judge(10, first)
            assert not ours.judge(20, second)
            assert ours.judge(30, {**second, "validation/loss": 3.0})
