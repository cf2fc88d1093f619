"""Metrics of predictions: accuracy with its interval, balanced accuracy, macro-F1, and scores per
class. No torch here.

Means over classes are over those that have test images.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# M test images, C classes.

Interval = tuple[float, float]

_Z_95 = 1.959963984540054  # the 97.5th percentile of the standard normal distribution
LARGEST_CONFUSION = 1_000
"""Most classes for which a confusion matrix is kept: its size is their square."""


def wilson_interval(num_right: int, num_images: int, z: float = _Z_95) -> Interval:
    """The score interval of a proportion, 95 % by default; within [0, 1], and valid where the
    normal approximation is not: for few images and near 0 and 1.

    Args:
        num_right: In [0, num_images].
        num_images: At least 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22(158), 209-212.
    """
    share, square = num_right / num_images, z * z / num_images
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-17.
    low = 0.0 if num_right == 0 else center - half
    high = 1.0 if num_right == num_images else center + half
    return low, high


def chance_difference(first: float, second: float, num_images: int, z: float = 2.0) -> float:
    """The least difference by which the first of two accuracies exceeds the second by more than
    chance, if they are independent; for the same test images this is conservative.

    Args:
        first, second: Accuracies in [0, 1], each measured on ``num_images``.
        z: Number of standard errors.

    Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10: Wilson's intervals of the
    two, squared and added.
    """
    low = wilson_interval(round(first * num_images), num_images, z)[0]
    high = wilson_interval(round(second * num_images), num_images, z)[1]
    return math.hypot(first - low, high - second)


@dataclass(frozen=True, eq=False)
class Scores:
    """Counts of predictions against labels."""

    correct: np.ndarray
    """(M,) bool, in the order of the test images."""
    support: np.ndarray
    """(C,) number of test images of each class."""
    predicted: np.ndarray
    """(C,) number of test images predicted as each class."""
    hits: np.ndarray
    """(C,) number of test images of each class that were predicted correctly."""
    confusion: np.ndarray | None
    """(C, C) number of test images by class (row) and predicted class (column); None for more than
    ``LARGEST_CONFUSION`` classes."""

    @property
    def num_right(self) -> int:
        """Number of correct predictions."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """Accuracy in [0, 1]."""
        return self.num_right / len(self.correct)

    @property
    def interval(self) -> Interval:
        """The accuracy's 95 % interval."""
        return wilson_interval(self.num_right, len(self.correct))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have test images, in [0, 1]."""
        tested = self.support > 0
        return float((self.hits[tested] / self.support[tested]).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have test images, in [0, 1]."""
        tested = self.support > 0
        return float((2 * self.hits[tested] / (self.support + self.predicted)[tested]).mean())


def score(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> Scores:
    """Compare predictions with labels.

    Args:
        labels: (M,) ints in [0, num_classes), M at least 1.
        predictions: (M,) ints in [0, num_classes).
    """
    correct = labels == predictions
    confusion = None
    if num_classes <= LARGEST_CONFUSION:
        pairs = labels * num_classes + predictions
        confusion = np.bincount(pairs, minlength=num_classes**2)
        confusion = confusion.reshape(num_classes, num_classes)
    return Scores(
        correct,
        np.bincount(labels, minlength=num_classes),
        np.bincount(predictions, minlength=num_classes),
        np.bincount(labels[correct], minlength=num_classes),
        confusion,
    )


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; a share of nothing is None."""

    name: str
    support: int
    """Number of test images of the class."""
    predicted: int
    """Number of test images predicted as the class."""
    correct: int
    """Number of those that are both."""
    precision: float | None
    """Correct over predicted."""
    recall: float | None
    """Correct over support: the accuracy on this class's images."""
    recall_interval: Interval | None
    """Wilson's 95 % interval of the recall."""
    f1: float | None
    """Harmonic mean of precision and recall, 0 if nothing is correct; None without support."""


def class_scores(scores: Scores, names: tuple[str, ...]) -> list[ClassScore]:
    """The scores of each class, in the order of the classes."""
    return [
        ClassScore(
            name,
            support,
            predicted,
            correct,
            correct / predicted if predicted else None,
            correct / support if support else None,
            wilson_interval(correct, support) if support else None,
            2 * correct / (support + predicted) if support else None,
        )
        for name, support, predicted, correct in zip(
            names,
            scores.support.tolist(),
            scores.predicted.tolist(),
            scores.hits.tolist(),
            strict=True,
        )
    ]


def summarize(scores: Scores) -> dict[str, Any]:
    """The scores over all classes, for JSON."""
    return {
        "accuracy": scores.accuracy,
        "interval_95": list(scores.interval),
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
    }
