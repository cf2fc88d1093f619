"""The grid of linear classifiers against torch's own SGD, one learning rate at a time."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.errors import UserError
from ssl_vit_eval.baselines import Split
from ssl_vit_eval.held_out import HeldOutScore
from ssl_vit_eval.linear import (
    BASE_RATES,
    INIT_STD,
    LinearSettings,
    choose,
    draw_batches,
    measure,
    predict,
    probe,
    split_held_out,
    standardize,
    train_heads,
    try_rates,
)

SETTINGS = LinearSettings(epochs=5, batch_size=32, seed=1)


@pytest.fixture
def toy() -> tuple[Tensor, Tensor]:
    """(300, 6) features of three classes that overlap, (300,) labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    centers = torch.randn(3, 6, generator=generator)
    return centers[labels] + torch.randn(300, 6, generator=generator), labels


def train_alone(features: Tensor, labels: Tensor, rate: float) -> nn.Linear:
    """torch.optim.SGD, torch's cross-entropy, autograd; same start, same batches."""
    layer = nn.Linear(features.shape[1], 3)
    start = torch.randn(features.shape[1], 1, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.weight.copy_(INIT_STD * start[:, 0].T)
        layer.bias.zero_()
    batches = list(draw_batches(len(features), 32, 5, seed=1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    for step, places in enumerate(batches):
        peak = rate * 32 / 256
        optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(features[places]), labels[places]).backward()
        optimizer.step()
    return layer


def test_every_rate_ends_where_it_would_have_ended_alone(toy):
    features, labels = toy
    heads = train_heads(features, labels, BASE_RATES, 3, SETTINGS)
    for place, rate in enumerate(BASE_RATES):
        alone = train_alone(features, labels, rate)
        torch.testing.assert_close(heads.weight[:, place].T, alone.weight, atol=1e-4, rtol=0)
        torch.testing.assert_close(heads.bias[place], alone.bias, atol=1e-4, rtol=0)
    moved = (heads.weight[:, 0] - heads.weight[:, -1]).abs().max()
    assert moved > 0.05, "rates that do not differ would prove nothing"


def test_measuring_equals_torchs_cross_entropy(toy):
    features, labels = toy
    heads = train_heads(features, labels, BASE_RATES, 3, SETTINGS)
    accuracy, loss = measure(heads, features, labels)
    for place in range(len(BASE_RATES)):
        logits = features @ heads.weight[:, place] + heads.bias[place]
        assert accuracy[place] == (logits.argmax(1) == labels).double().mean()
        assert loss[place] == pytest.approx(
            nn.functional.cross_entropy(logits, labels).item(), 1e-5
        )


def test_an_epoch_draws_no_image_twice_and_leaves_less_than_a_batch_out():
    batches = list(draw_batches(300, 32, 4, seed=0))
    assert len(batches) == 4 * 9
    for epoch in range(4):
        drawn = torch.cat(batches[9 * epoch : 9 * epoch + 9]).tolist()
        assert len(set(drawn)) == len(drawn) == 288
    assert not torch.equal(batches[0], batches[9])


def test_standardizing_equals_batch_norm_without_affine(toy):
    features, _ = toy
    layer = nn.BatchNorm1d(6, eps=1e-6, affine=False, momentum=1.0)
    expected_train = layer(features)
    split = standardize(features, features[:50])
    torch.testing.assert_close(split.train, expected_train, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(split.test, expected_train[:50], atol=1e-5, rtol=1e-5)


def test_the_held_out_part_is_disjoint_stable_and_holds_every_class():
    labels = torch.tensor([0] * 95 + [1] * 20 + [2] * 3 + [3])
    fit, held_out = split_held_out(labels, 0.1, seed=0)
    assert sorted(fit.tolist() + held_out.tolist()) == list(range(len(labels)))
    # round(9.5) is 10 or 9; a class of three still gives one, a class of one gives none.
    assert labels[held_out].bincount(minlength=4).tolist() in ([9, 2, 1, 0], [10, 2, 1, 0])
    again = split_held_out(labels, 0.1, seed=0)
    assert torch.equal(again[1], held_out)
    assert not torch.equal(split_held_out(labels, 0.1, seed=1)[1], held_out)


def test_a_rate_that_diverged_is_not_chosen_and_is_no_number_in_json():
    scores = [
        HeldOutScore(0.1, 0.5, 1.0, 10),
        HeldOutScore(0.2, 0.9, math.nan, 10),
        HeldOutScore(0.5, 0.9, math.inf, 10),
        HeldOutScore(1.0, 0.6, 2.0, 10),
        HeldOutScore(2.0, 0.6, 1.5, 10),
    ]
    for order in (scores, scores[::-1]):
        assert choose(order).base_rate == 2.0
    assert scores[1].plain() == {"base_rate": 0.2, "accuracy": None, "loss": None}
    json.dumps([score.plain() for score in scores], allow_nan=False)


def test_a_classifier_that_diverged_predicts_nothing(toy):
    features, labels = toy
    heads = train_heads(features, labels, [0.1], 3, SETTINGS)
    given = predict(heads, features)
    assert (given == labels).double().mean() == measure(heads, features, labels)[0][0]
    heads.weight[0, 0, 1] = math.nan
    with pytest.raises(FloatingPointError):
        predict(heads, features)


def test_a_probe_whose_every_rate_diverges_is_refused(toy, monkeypatch):
    features, labels = toy
    monkeypatch.setattr("ssl_vit_eval.linear.BASE_RATES", (1e39, 1e40))
    with pytest.raises(UserError, match="the linear probe diverged at learning rate"):
        probe({"cls": Split(features, features)}, labels, labels, 3, SETTINGS)


def test_nothing_is_held_out_of_classes_of_one_image():
    with pytest.raises(ValueError, match="no class has two images"):
        try_rates(torch.randn(5, 3), torch.arange(5), 5, SETTINGS)


def test_separable_classes_are_learned():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    features = 100 + 0.3 * torch.randn(400, 10, generator=generator)
    features[torch.arange(400), labels] += 3
    kinds = {"cls": Split(features[:200], features[200:])}
    (result,) = probe(kinds, labels[:200], labels[200:], 4, LinearSettings())
    assert result.accuracy == 1.0


def test_a_useless_kind_of_feature_is_not_the_one_that_is_tested(toy):
    features, labels = toy
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(5))
    kinds = {"cls": Split(noise[:200], noise[200:]), "mean": Split(features[:200], features[200:])}
    cls, mean = probe(kinds, labels[:200], labels[200:], 3, LinearSettings(epochs=20))
    assert cls.accuracy is None
    assert mean.accuracy is not None
    assert mean.accuracy > 0.6


def test_test_labels_do_not_take_part_in_the_choice(toy):
    features, labels = toy
    noisy = features + torch.randn(300, 6, generator=torch.Generator().manual_seed(6))
    kinds = {
        "cls": Split(features[:200], features[200:]),
        "mean": Split(noisy[:200], noisy[200:]),
    }
    shuffled = labels[200:][torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    honest = probe(kinds, labels[:200], labels[200:], 3, SETTINGS)
    spoiled = probe(kinds, labels[:200], shuffled, 3, SETTINGS)
    for before, after in zip(honest, spoiled, strict=True):
        assert (before.setting, before.held_out) == (after.setting, after.held_out)
        assert before.details == after.details
        assert (before.accuracy is None) == (after.accuracy is None)
    assert honest[0].accuracy != spoiled[0].accuracy
