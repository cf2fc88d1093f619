"""Spread and spectrum of features: against the papers' formulas, and where they must be 1."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.monitors.measures import alpha_req, rankme, spread, usage


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_rankme_is_the_papers(shape: tuple[int, int]):
    features = random(*shape)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = [value / values.sum() for value in values]
    assert rankme(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_rankme_counts_dimensions_that_are_used_alike():
    rows = torch.zeros(64, 32)
    rows[torch.arange(64), torch.arange(64) % 8] = 3.0
    assert rankme(rows) == pytest.approx(8)
    assert rankme(torch.ones(64, 32)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(64, 32)) == pytest.approx(1)  # no features at all


def test_alpha_is_the_exponent_of_the_spectrum():
    alpha = 1.3
    # Directions at right angles and of zero mean, so that the covariance is what we say.
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(100, 1), random(100, 20)], dim=1).double())
    scales = torch.arange(1, 21).double() ** (-alpha / 2)
    assert alpha_req((basis[:, 1:] * scales + 5).float()) == pytest.approx(alpha, rel=1e-3)


def test_alpha_of_features_without_a_spectrum_is_nan():
    assert math.isnan(alpha_req(torch.ones(30, 10)))


def test_spread_is_0_for_one_direction_and_1_for_all():
    assert spread(random(1, 64).expand(50, -1)) == pytest.approx(0, abs=1e-7)
    assert spread(random(4000, 64)) == pytest.approx(1, abs=0.01)
    both = torch.cat([torch.eye(1, 8).expand(50, -1), -torch.eye(1, 8).expand(50, -1)])
    assert spread(both * 7) == pytest.approx(1)
    # By hand: two directions at right angles are each half a diagonal from their mean.
    assert spread(torch.eye(2, 8)) == pytest.approx(math.sqrt(0.5))


def test_usage_is_of_what_could_occur():
    assert usage(torch.tensor([3, 3, 3, 3]), 100) == 0.25
    assert usage(torch.arange(4).repeat(10), 4) == 1
    assert usage(torch.tensor([1, 2, 3, 4]), 100) == 1
