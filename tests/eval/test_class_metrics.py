"""Intervals against published tables, scores against a confusion matrix counted by hand."""

import numpy as np
import pytest

from ssl_vit_eval import metrics
from ssl_vit_eval.metrics import chance_difference, class_scores, score, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_images", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(num_right, num_images, low, high):
    assert wilson_interval(num_right, num_images) == pytest.approx((low, high), abs=5e-5)
    # And mirrored, for those that were wrong.
    mirrored = wilson_interval(num_images - num_right, num_images)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("num_images", [1, 10, 1000])
def test_an_interval_stays_within_0_and_1_and_around_the_accuracy(num_images):
    for num_right in {0, 1, num_images // 2, num_images}:
        low, high = wilson_interval(num_right, num_images)
        assert 0 <= low <= num_right / num_images <= high <= 1
        assert high > low
    assert wilson_interval(num_images, num_images)[1] == 1
    assert wilson_interval(0, num_images)[0] == 0


def test_a_difference_is_newcombes():
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10: 9/10 and 3/10 differ
    # by 0.1705 to 0.8090.
    below = chance_difference(0.9, 0.3, 10, z=1.959964)
    assert 0.6 - below == pytest.approx(0.1705, abs=5e-5)


def test_scores_are_those_of_a_matrix_counted_by_hand():
    #            given  a  b  c  d
    matrix = np.array([[5, 1, 0, 0],  # a
                       [2, 2, 0, 1],  # b
                       [3, 0, 0, 0],  # c: never given
                       [0, 0, 0, 0]])  # d: no test image, given once  # fmt: skip
    pairs = [(a, b) for a in range(4) for b in range(4) for _ in range(matrix[a, b])]
    labels, predictions = np.array(pairs).T
    found = score(labels, predictions, 4)
    assert found.confusion is not None
    assert found.confusion.tolist() == matrix.tolist()
    assert found.accuracy == 7 / 14
    assert found.interval == wilson_interval(7, 14)
    # Recall: 5/6, 2/5, 0/3. F1: 2·5/(6+10), 2·2/(5+3), 0.
    assert found.balanced_accuracy == pytest.approx((5 / 6 + 2 / 5 + 0) / 3)
    assert found.macro_f1 == pytest.approx((10 / 16 + 4 / 8 + 0) / 3)
    a, b, c, d = class_scores(found, ("a", "b", "c", "d"))
    assert (a.precision, a.recall, a.f1) == (5 / 10, 5 / 6, 10 / 16)
    assert (b.precision, b.recall, b.f1) == (2 / 3, 2 / 5, 4 / 8)
    assert (c.precision, c.recall, c.f1) == (None, 0, 0)
    assert (d.precision, d.recall, d.f1, d.recall_interval) == (0, None, None, None)
    assert [each.support for each in (a, b, c, d)] == [6, 5, 3, 0]
    assert [each.predicted for each in (a, b, c, d)] == [10, 3, 0, 1]


def test_no_matrix_is_kept_of_very_many_classes(monkeypatch):
    labels = np.array([0, 1, 2])
    monkeypatch.setattr(metrics, "LARGEST_CONFUSION", 2)
    found = score(labels, labels, 3)
    assert found.confusion is None
    assert found.accuracy == found.balanced_accuracy == found.macro_f1 == 1
