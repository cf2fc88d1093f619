"""The k-NN vote against plain float64 loops."""

import math

import pytest
import torch
from torch import Tensor

from ssl_vit.monitors import knn
from ssl_vit.monitors.knn import knn_accuracy

KS = (1, 5, 20)


def loop_accuracy(
    train: list[list[float]],
    train_labels: list[int],
    test: list[list[float]],
    test_labels: list[int],
    k: int,
    temperature: float,
) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b))

    right = 0
    for image, label in zip(test, test_labels, strict=True):
        near = sorted(
            ((cosine(image, other), own) for other, own in zip(train, train_labels, strict=True)),
            reverse=True,
        )[:k]
        votes: dict[int, float] = {}
        for similarity, own in near:
            votes[own] = votes.get(own, 0.0) + math.exp(similarity / temperature)
        right += max(votes, key=lambda own: votes[own]) == label
    return right / len(test)


@pytest.fixture
def clusters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four overlapping clouds in eight dimensions, far from the origin and of unequal length."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 8, generator=generator)
    labels = torch.randint(0, 4, (150,), generator=generator)
    points = 3 * (centers[labels] + 1.2 * torch.randn(150, 8, generator=generator))
    points *= torch.rand(150, 1, generator=generator) + 0.1
    return points[:100], labels[:100], points[100:], labels[100:]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_vote_equals_a_float64_loop(clusters, temperature):
    train, train_labels, test, test_labels = clusters
    found = knn_accuracy(train, train_labels, test, test_labels, KS, temperature, 4)
    expected = {
        k: loop_accuracy(
            train.tolist(),
            train_labels.tolist(),
            test.tolist(),
            test_labels.tolist(),
            k,
            temperature,
        )
        for k in KS
    }
    assert found == expected
    assert len(set(found.values())) > 1, "the oracle must be able to tell the k apart"


def test_the_size_of_the_chunks_does_not_matter(clusters, monkeypatch):
    whole = knn_accuracy(*clusters, KS, 0.07, 4)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 700)  # seven test images at a time
    assert knn_accuracy(*clusters, KS, 0.07, 4) == whole


def test_the_length_of_a_feature_does_not_matter(clusters):
    train, train_labels, test, test_labels = clusters
    scale = torch.linspace(0.01, 100, len(train)).unsqueeze(1)
    scaled = knn_accuracy(train * scale, train_labels, test * 7, test_labels, KS, 0.07, 4)
    assert scaled == knn_accuracy(*clusters, KS, 0.07, 4)


def test_a_k_beyond_the_train_set_is_refused(clusters):
    with pytest.raises(ValueError, match="100 train images"):
        knn_accuracy(*clusters, (10, 200), 0.07, 4)
