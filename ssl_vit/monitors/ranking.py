"""How well numbers rank the images of a class above all others. numpy only."""

import numpy as np

# M images.


def auroc(scores: np.ndarray, own: np.ndarray) -> float | None:
    """Area under the ROC curve, in [0, 1]; None if there are only images of the class, or none.

    Args:
        scores: (M,) a higher one means the class.
        own: (M,) bool, which images are of the class.

    Source: Hanley & McNeil 1982, Radiology 143(1): the probability that an image of the class is
    ranked above one of another, equal ones counted by half.
    """
    positives, negatives = int(own.sum()), int((~own).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2)[place]  # from 1; equal scores share the mean of theirs
    area = ranks[own].sum() - positives * (positives + 1) / 2
    return float(area / (positives * negatives))


def average_precision(scores: np.ndarray, own: np.ndarray) -> float | None:
    """Average precision in [0, 1]: the sum of the precision at every threshold times the gain in
    recall there; None if there are only images of the class, or none.

    Args:
        scores, own: As for :func:`auroc`.
    """
    if not own.any() or own.all():
        return None
    order = np.argsort(-scores, kind="stable")
    hits = own[order].cumsum()
    # Equal scores are one threshold.
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, counts = hits[last], np.flatnonzero(last) + 1
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / counts).sum() / own.sum())


def mean_of(values: list[float | None]) -> float | None:
    """The mean of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
