"""Metrics of probabilities against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.monitors.ranking import mean_of
from ssl_vit_eval.probabilities import (
    auroc_by_class,
    average_precision_by_class,
    calibration_error,
    in_top,
    log_loss,
)


def drawn(with_ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(int(with_ties))
    labels = rng.integers(0, 6, 300)
    logits = rng.normal(size=(300, 7)) + 1.5 * np.eye(7)[labels]  # class 6 has no image
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if with_ties:
        found = np.round(found, 1) + 1e-3
        found /= found.sum(axis=1, keepdims=True)
        found = np.round(found, 2)
    return found.astype(np.float32), labels


@pytest.mark.parametrize("with_ties", [False, True])
def test_curves_are_those_of_scikit_learn(with_ties: bool) -> None:
    found, labels = drawn(with_ties)
    areas, precisions = auroc_by_class(found, labels), average_precision_by_class(found, labels)
    assert areas[6] is None
    assert precisions[6] is None
    for number in range(6):
        own = labels == number
        assert areas[number] == pytest.approx(theirs.roc_auc_score(own, found[:, number]))
        expected = theirs.average_precision_score(own, found[:, number])
        assert precisions[number] == pytest.approx(expected)
    assert mean_of(areas) == pytest.approx(np.mean(areas[:6]))  # type: ignore[arg-type]


def test_loss_and_top_k_are_those_of_scikit_learn() -> None:
    found, labels = drawn(with_ties=False)
    assert log_loss(found, labels) == pytest.approx(
        theirs.log_loss(labels, found.astype(np.float64), labels=np.arange(7)), rel=1e-5
    )
    for count in (1, 2, 5):
        expected = theirs.top_k_accuracy_score(labels, found, k=count, labels=np.arange(7))
        assert in_top(found, labels, count).mean() == pytest.approx(expected)


def test_of_equal_probabilities_not_all_are_in_the_top() -> None:
    even = np.full((8, 8), 1 / 8)
    assert in_top(even, np.arange(8), 5).tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("with_ties", [False, True])
def test_calibration_error_is_that_of_torchmetrics(with_ties: bool) -> None:
    define_missing_ops()
    from torchmetrics.classification import MulticlassCalibrationError

    found, labels = drawn(with_ties)
    metric = MulticlassCalibrationError(7, n_bins=15, norm="l1")
    expected = float(metric(torch.from_numpy(found), torch.from_numpy(labels)))
    assert calibration_error(found, labels) == pytest.approx(expected, abs=1e-5)


def test_one_class_alone_has_no_curve() -> None:
    found = np.array([[0.7, 0.3], [0.6, 0.4]])
    assert auroc_by_class(found, np.array([0, 0])) == [None, None]
    assert average_precision_by_class(found, np.array([0, 0])) == [None, None]
    assert mean_of([None, None]) is None
