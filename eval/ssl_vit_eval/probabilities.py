"""Metrics of predicted probabilities. No torch here.

Means over classes are over those that have both images of the class and others.
"""

import numpy as np

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

    Source: Hanley & McNeil 1982, Radiology 143(1): the probability that an image of the class is
    ranked above one of another, equal ones counted by half.
    """
    found: list[float | None] = []
    for number, column in enumerate(probabilities.T):
        own = labels == number
        positives, negatives = int(own.sum()), int((~own).sum())
        if not positives or not negatives:
            found.append(None)
            continue
        ranks = _mean_ranks(column)
        area = ranks[own].sum() - positives * (positives + 1) / 2
        found.append(float(area / (positives * negatives)))
    return found


def average_precision_by_class(probabilities: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """(C,) average precision of each class against all others, in [0, 1]: the sum of the precision
    at every threshold times the gain in recall there; None where one of both is missing.
    """
    found: list[float | None] = []
    for number, column in enumerate(probabilities.T):
        own = labels == number
        if not own.any() or own.all():
            found.append(None)
            continue
        order = np.argsort(-column, kind="stable")
        hits = own[order].cumsum()
        # Equal probabilities are one threshold.
        last = np.append(np.diff(column[order]) != 0, True)
        hits, counts = hits[last], np.flatnonzero(last) + 1
        gained = np.diff(hits, prepend=0)
        found.append(float((gained * hits / counts).sum() / own.sum()))
    return found


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


def mean_of(values: list[float | None]) -> float | None:
    """The mean of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """(M,) ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[place]
