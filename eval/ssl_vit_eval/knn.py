"""The k-NN protocol of DINO and DINOv2: of several k, the best one counts.

Source: Caron et al. 2021, arXiv 2104.14294, appendix F.1.
"""

from collections.abc import Sequence

import torch

from ssl_vit.monitors.knn import TEMPERATURE, knn_predictions
from ssl_vit_eval.baselines import Comparison, Split
from ssl_vit_eval.metrics import summarize
from ssl_vit_eval.results import Evaluation, KindResult, RowResult

NEIGHBORS = (10, 20, 100, 200)


def evaluate(comparison: Comparison, device: torch.device, ks: Sequence[int] = ()) -> Evaluation:
    """The best k of every kind of feature of every row; all k are in the details.

    Args:
        ks: Numbers of neighbors, each in [1, N]; empty: those of ``NEIGHBORS`` in this range.
    """
    train_labels = comparison.train_labels.to(device)
    tried = list(ks) or [k for k in NEIGHBORS if k <= len(train_labels)]

    def of_kind(kind: str, split: Split) -> KindResult:
        features = (split.train.to(device), train_labels, split.test.to(device))
        found = knn_predictions(*features, tried, TEMPERATURE, comparison.num_classes)
        scores = {k: comparison.score(predictions) for k, predictions in found.items()}
        best = max(scores, key=lambda k: scores[k].accuracy)
        details = {
            "accuracy_by_k": {str(k): each.accuracy for k, each in scores.items()},
            "by_k": {str(k): summarize(each) for k, each in scores.items()},
        }
        accuracy = scores[best].accuracy
        return KindResult(kind, f"k={best}", accuracy, details=details, scores=scores[best])

    rows = tuple(
        RowResult(name, tuple(of_kind(kind, split) for kind, split in kinds.items()))
        for name, kinds in comparison.rows.items()
    )
    settings = {
        "k": tried,
        "temperature": TEMPERATURE,
        "similarity": "cosine",
        "chosen_on": "test, for every row alike",
    }
    notes = [
        "* result of the row: best k and kind of feature on the test set, chosen for every row."
    ]
    dropped = [str(k) for k in NEIGHBORS if k > len(train_labels)]
    if dropped and not ks:
        notes.append(f"k={', '.join(dropped)} left out: train has {len(train_labels)} images.")
    return Evaluation("knn", settings, rows, comparison.majority, tuple(notes), comparison.overlap)
