"""Weighted k-nearest neighbours on frozen features, while a run goes on and after it.

Source: Caron et al. 2021, arXiv 2104.14294, appendix F.1.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# N train and M test images, D features, C classes.

TEMPERATURE = 0.07
# Entries of the similarity matrix held at once: 128 MiB of float32.
_MAX_SIMILARITIES = 2**25


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, float]:
    """Classify every test image by a vote of its nearest train images.

    A neighbour of cosine similarity s gives its class exp(s / temperature) votes.

    Args:
        train: (N, D) float.
        train_labels: (N,) int64 in [0, num_classes).
        test: (M, D) float.
        test_labels: (M,) int64 in [0, num_classes).
        ks: Numbers of neighbours, each in [1, N].

    Returns:
        k → share in [0, 1] of test images that got their own label.

    Raises:
        ValueError: A k that is out of range.
    """
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(f"ks={list(ks)} must lie between 1 and the {len(train)} train images")
    train = F.normalize(train, dim=1)
    right = dict.fromkeys(ks, 0)
    rows = max(1, _MAX_SIMILARITIES // len(train))
    for some, labels in zip(test.split(rows), test_labels.split(rows), strict=True):
        similarity = F.normalize(some, dim=1) @ train.T
        nearest, places = similarity.topk(max(ks), dim=1)
        # Relative to the nearest one: the same winner, and exp cannot overflow.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        classes = train_labels[places]
        for k in ks:
            votes = weights.new_zeros(len(some), num_classes)
            votes.scatter_add_(1, classes[:, :k], weights[:, :k])
            right[k] += int((votes.argmax(dim=1) == labels).sum())
    return {k: count / len(test) for k, count in right.items()}
