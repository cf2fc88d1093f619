"""What a run with labels says of its classes, and which data it refuses."""

from typing import Any

import numpy as np
import pytest

from ssl_vit.data.index_file import NO_LABEL
from ssl_vit.errors import UserError
from ssl_vit.recipes import find_recipe
from ssl_vit.run.classes import settle_classes
from ssl_vit.run.config import RunConfig

CONFIG = find_recipe("finetune_small_data")


class Labeled:
    """A shard set of which only the labels are looked at."""

    source = "SHARDS"

    def __init__(self, labels: list[int], classes: tuple[str, ...] = ("good", "bad")) -> None:
        self.labels, self.classes = np.array(labels), classes


def settled(*arguments: Any, config: RunConfig = CONFIG) -> tuple[Any, tuple[str, ...]]:
    shards: Any = Labeled(*arguments)
    found, notes = settle_classes(config, shards)
    return found.objective, notes


def test_classes_and_counts_are_filled_in_and_said() -> None:
    objective, notes = settled([0, 0, 1, 0])
    assert objective.classes == ("good", "bad")
    assert objective.class_counts == (3, 1)
    assert notes[0] == "2 classes: good 3, bad 1"
    assert "random weights" in notes[1]
    assert len(notes) == 2
    _, notes = settled([0, 1], config=CONFIG.model_copy(update={"resume_from": "EXPORT"}))
    assert notes == ("2 classes: good 1, bad 1",)


def test_imbalance_and_classes_without_images_are_said() -> None:
    _, notes = settled([0] * 19 + [1], ("good", "bad", "ugly"))
    assert notes[0] == "3 classes: good 19, bad 1, ugly 0"
    assert notes[1] == "warning: no training image of ugly"
    assert "19.0 times the images of the smallest" in notes[2]
    assert "objective.class_weights=auto" in notes[2]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1, NO_LABEL], "1 of 3 images of SHARDS have no label"),
        ([NO_LABEL] * 2, "no image of SHARDS has a label"),
        ([1, 1], r"all training images are of one class \(bad\)"),
        ([0, 2], "outside its 2 classes"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels: list[int], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        settled(labels)


def test_synthetic_images_have_no_labels() -> None:
    with pytest.raises(UserError, match="needs labels"):
        settle_classes(CONFIG, None)


def test_a_method_without_labels_does_not_look_at_them() -> None:
    config = find_recipe("mae_small_data")
    assert settle_classes(config, None) == (config, ())
