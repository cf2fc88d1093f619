"""The k-NN protocol of DINO and DINOv2: every k, the best one counts.

Source: Caron et al. 2021, arXiv 2104.14294, appendix F.1.
"""

import torch

from ssl_vit.monitors.knn import TEMPERATURE, knn_accuracy
from ssl_vit_eval.baselines import Comparison, Split
from ssl_vit_eval.report import Evaluation, KindResult, RowResult

NEIGHBOURS = (10, 20, 100, 200)


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
