"""Weighted k-nearest neighbours on frozen features, as DINO and DINOv2 evaluate.

Source: Caron et al. 2021, arXiv 2104.14294, appendix F.1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit_eval.baselines import Comparison, Split
from ssl_vit_eval.report import Evaluation, KindResult, RowResult

# N train and M test images, D features, C classes.

NEIGHBOURS = (10, 20, 100, 200)
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


def evaluate(comparison: Comparison, device: torch.device) -> Evaluation:
    """The best k of every kind of feature of every row; all k are in the details."""
    train_labels = comparison.train_labels.to(device)
    test_labels = comparison.test_labels.to(device)
    ks = [k for k in NEIGHBOURS if k <= len(train_labels)]

    def of_kind(kind: str, split: Split) -> KindResult:
        accuracy = knn_accuracy(
            split.train.to(device),
            train_labels,
            split.test.to(device),
            test_labels,
            ks,
            TEMPERATURE,
            comparison.num_classes,
        )
        best = max(accuracy, key=lambda k: accuracy[k])
        by_k = {str(k): value for k, value in accuracy.items()}
        return KindResult(kind, f"k={best}", accuracy[best], details={"accuracy_by_k": by_k})

    rows = tuple(
        RowResult(name, tuple(of_kind(kind, split) for kind, split in kinds.items()))
        for name, kinds in comparison.rows.items()
    )
    settings = {
        "k": ks,
        "temperature": TEMPERATURE,
        "similarity": "cosine",
        "chosen_on": "test, for every row alike",
    }
    notes = [
        "* counts: the best k and kind of feature on the test set itself, for every row alike."
    ]
    if dropped := [str(k) for k in NEIGHBOURS if k not in ks]:
        notes.append(f"k={', '.join(dropped)} left out: train has {len(train_labels)} images.")
    return Evaluation("knn", settings, rows, comparison.majority, tuple(notes))
