"""The head that fine-tuning starts from, against scikit-learn and loops."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_vit.objectives.classification.head_fit import (
    PENALTIES,
    FittedHead,
    fit_head,
    hold_out_views,
)
from tests.objectives.test_classification import batch_of, build

NUM_CLASSES = 3


def made_up(count: int = 240) -> tuple[Tensor, Tensor]:
    """Features of very different sizes far from 0, and noisy classes that follow from them."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 5, 12)
    features = torch.randn(count, 12, generator=generator) * spread + 3
    slopes = torch.randn(12, NUM_CLASSES, generator=generator) / spread.unsqueeze(1)
    noise = 2 * torch.randn(count, NUM_CLASSES, generator=generator)
    return features, ((features - 3) @ slopes + noise).argmax(dim=1)


def fitted(
    features: Tensor, labels: Tensor, num_classes: int = NUM_CLASSES, weights: Tensor | None = None
) -> FittedHead:
    """With the cross-entropy of images of one class."""

    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, weight=weights)

    held = hold_out_views(labels, torch.arange(len(labels)))
    return fit_head(features, F.one_hot(labels, num_classes).double(), held, loss_of)


def standardized(features: Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def theirs(penalty: float, count: int, **more: Any) -> LogisticRegression:
    return LogisticRegression(C=1 / (penalty * count), tol=1e-10, max_iter=5000, **more)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_it_is_scikit_learns_regression(weights: Tensor | None) -> None:
    features, labels = made_up()
    found = fitted(features, labels, weights=None if weights is None else weights.double())
    rows = standardized(features)
    sizes = None if weights is None else weights[labels].numpy()
    other = theirs(found.penalty, len(labels))
    expected = other.fit(rows, labels.numpy(), sample_weight=sizes).predict_proba(rows)
    weight, bias = found.folded()
    ours = (features @ weight.T + bias).softmax(dim=1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-4)


def test_yes_and_no_for_each_class_is_a_regression_for_each() -> None:
    """Of images that are of several classes or of none."""
    features, labels = made_up()
    generator = torch.Generator().manual_seed(1)
    there = F.one_hot(labels, NUM_CLASSES).bool()
    there ^= torch.rand(there.shape, generator=generator) < 0.1
    held = hold_out_views(labels, torch.arange(len(labels)))
    found = fit_head(
        *(features, there.double(), held, F.binary_cross_entropy_with_logits), is_multi_label=True
    )
    rows = standardized(features)
    # The loss is the mean over classes too.
    penalty = found.penalty * NUM_CLASSES
    weight, bias = found.folded()
    for number in range(NUM_CLASSES):
        other = theirs(penalty, len(labels)).fit(rows, there[:, number].numpy())
        ours = (features @ weight[number] + bias[number]).sigmoid()
        np.testing.assert_allclose(ours.numpy(), other.predict_proba(rows)[:, 1], atol=5e-4)


def test_the_penalty_is_that_with_the_lowest_held_out_loss() -> None:
    features, labels = made_up()
    held = hold_out_views(labels, torch.arange(len(labels))).numpy()
    rows, wanted = standardized(features), labels.numpy()
    losses, right = [], []
    for penalty in PENALTIES:
        other = theirs(penalty, int((~held).sum())).fit(rows[~held], wanted[~held])
        chances = other.predict_proba(rows[held])
        losses.append(-np.log(chances[np.arange(held.sum()), wanted[held]]).mean())
        right.append(float((chances.argmax(axis=1) == wanted[held]).mean()))
    found = fitted(features, labels)
    best = int(np.argmin(losses))
    assert 0 < best < len(PENALTIES) - 1  # a choice that says something
    assert found.penalty == PENALTIES[best]
    assert found.accuracy == pytest.approx(right[best])


def test_a_tenth_of_every_class_is_held_out_and_never_its_only_image() -> None:
    labels = torch.tensor([2, 0, 1, 0] + [1] * 20)
    held = hold_out_views(labels, torch.arange(len(labels)))
    assert held[labels == 2].sum() == 0
    assert held[labels == 0].sum() == 1
    assert held[labels == 1].sum() == 2
    alone = torch.tensor([0, 1, 2])
    assert not hold_out_views(alone, torch.arange(3)).any()
    found = fitted(torch.randn(3, 4), alone)
    assert found.accuracy is None


def test_all_views_of_an_image_are_on_one_side() -> None:
    numbers = torch.tensor([30, 10, 20] * 3 + [*range(100, 118)] * 2)
    labels = torch.where(numbers < 100, 0, 1)
    held = hold_out_views(labels, numbers)
    sides = {int(number): set(held[numbers == number].tolist()) for number in numbers.unique()}
    assert all(len(side) == 1 for side in sides.values())
    chosen = [number for number, side in sides.items() if True in side]
    assert chosen == [20, 101, 111]


def test_features_that_never_change_and_classes_without_images_do_no_harm() -> None:
    features, labels = made_up()
    features[:, 3] = 7.0
    found = fitted(features, labels, NUM_CLASSES + 1)
    assert torch.isfinite(found.weight).all()
    weight, bias = found.folded()
    logits = features @ weight.T + bias
    assert (logits.argmax(dim=1) < NUM_CLASSES).all()


@pytest.mark.parametrize("settings", [{"pooling": "cls"}, {"pooling": "mean", "ema_momentum": 0.9}])
def test_the_classifier_then_says_what_the_fitted_head_says(settings: dict[str, Any]) -> None:
    objective = build(head="probe", **settings).eval()
    batch = batch_of(9, objective.config)
    inputs = objective.head_inputs(batch)
    start = objective.fit_head(inputs, batch.labels, batch.numbers)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.load_state_dict(start.state, strict=False)
    found = fitted(inputs, batch.labels)
    weight, bias = found.folded()
    expected = inputs @ weight.T + bias
    torch.testing.assert_close(objective.logits(batch.images), expected, atol=1e-3, rtol=1e-3)
    changed = [
        name for name, value in objective.state_dict().items() if not value.equal(before[name])
    ]
    assert set(changed) == set(start.state)
    layers = {name.removeprefix("network.").removeprefix("average.module.") for name in changed}
    expected_layers = {"head.weight", "head.bias"}
    if settings["pooling"] == "mean":
        expected_layers |= {"fc_norm.weight", "fc_norm.bias"}
    assert layers == expected_layers


def test_attention_pooling_has_no_probe_to_start_from() -> None:
    with pytest.raises(ValueError, match=r"objective\.head=probe has nothing"):
        build(head="probe", pooling="map")
