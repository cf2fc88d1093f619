"""Validation of images of several classes against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss

from ssl_vit.monitors.multi_label_validation import Answers, MultiLabelValidation
from ssl_vit.objectives.method import Validating


def test_measures_are_scikit_learns_and_the_best_has_the_highest_precision() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((40, 4)) < (0.1, 0.5, 0.9, 0.0)  # the last class has no image
    logits = torch.from_numpy((2 * labels + rng.normal(size=(40, 4))).astype(np.float32))
    settings = Validating("", 0.1, 5, 2)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    validation = MultiLabelValidation(images, torch.arange(20), labels, 4, settings)
    parts = [Answers(torch.arange(start, 40, 2), logits[start::2]) for start in (0, 1)]
    found = validation.measure(parts)
    precision = [average_precision_score(labels[:, k], logits[:, k].numpy()) for k in range(3)]
    assert found["validation/mean_average_precision"] == pytest.approx(np.mean(precision))
    chances = logits.sigmoid().numpy().astype(float)
    losses = [log_loss(labels[:, k], chances[:, k], labels=[False, True]) for k in range(4)]
    assert found["validation/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    right = ((logits.numpy() > 0) == labels).mean()
    assert found["validation/accuracy"] == pytest.approx(right)
    assert validation.judge(5, found)
    worse = found | {"validation/mean_average_precision": 0.1, "validation/loss": 0.0}
    assert not validation.judge(10, worse)
    assert validation.best_step == 5
