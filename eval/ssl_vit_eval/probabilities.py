"""Metrics of predicted probabilities. No torch here.

Means over classes are over those that have both images of the class and others.
"""

import numpy as np

from ssl_vit.monitors.ranking import auroc, average_precision

# M test images, C classes.

_BINS = 15


def in_top(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """(M,) bool, whether the label is among the ``count`` most probable classes; of equal ones
    those with the lower number come first.

    Args:
        probabilities: (M, C).
        labels: (M,) ints in [0, C).
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    above = (probabilities > own).sum(axis=1)
    before = np.arange(probabilities.shape[1])[None] < labels[:, None]
    return above + ((probabilities == own) & before).sum(axis=1) < count


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def auroc_by_class(probabilities: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """(C,) area under the ROC curve of each class against all others, in [0, 1]; None where one of
    both is missing.
    """
    columns = enumerate(probabilities.T)
    return [auroc(column, labels == number) for number, column in columns]


def average_precision_by_class(probabilities: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """(C,) average precision of each class against all others, in [0, 1]; None where one of both is
    missing.
    """
    columns = enumerate(probabilities.T)
    return [average_precision(column, labels == number) for number, column in columns]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the most probable class, in [0, 1]: over 15 bins of equal width
    the mean difference between confidence and accuracy.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    differences = np.bincount(bins, right - confidence, _BINS)
    return float(np.abs(differences).sum() / len(labels))
