"""Weighted k-nearest neighbors on frozen features, during a run and after it.

Source: Caron et al. 2021, arXiv 2104.14294, appendix F.1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# N train and M test images, D features, C classes.

TEMPERATURE = 0.07
# Entries of the similarity matrix held at once: 128 MiB of float32.
_MAX_SIMILARITIES = 2**25


def knn_predictions(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, Tensor]:
    """Classify every test image by a vote of its nearest train images.

    A neighbor of cosine similarity s gives its class exp(s / temperature) votes.

    Args:
        train: (N, D) float, finite.
        train_labels: (N,) int64 in [0, num_classes).
        test: (M, D) float, finite.
        ks: Numbers of neighbors, each in [1, N].

    Returns:
        k → (M,) int64 class numbers, on the features' device.

    Raises:
        ValueError: A k that is out of range.
    """
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(f"ks={list(ks)} must lie between 1 and the {len(train)} train images")
    train = F.normalize(train, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    rows = max(1, _MAX_SIMILARITIES // len(train))
    for some in test.split(rows):
        similarity = F.normalize(some, dim=1) @ train.T
        nearest, places = similarity.topk(max(ks), dim=1)
        # Relative to the nearest one: the same winner, and exp cannot overflow.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        classes = train_labels[places]
        for k in ks:
            votes = weights.new_zeros(len(some), num_classes)
            votes.scatter_add_(1, classes[:, :k], weights[:, :k])
            found[k].append(votes.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, float]:
    """k → share in [0, 1] of test images classified correctly, see :func:`knn_predictions`.

    Args:
        test_labels: (M,) int64 in [0, num_classes), M at least 1.
    """
    found = knn_predictions(train, train_labels, test, ks, temperature, num_classes)
    return {k: int((predicted == test_labels).sum()) / len(test) for k, predicted in found.items()}
