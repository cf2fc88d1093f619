"""DINO's, iBOT's and DINOv2's losses and targets against float64 loops written from the papers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.objectives.dino.heads import ProjectionHead
from ssl_vit.objectives.dino.losses import (
    Center,
    cross_entropy,
    koleo,
    patch_loss,
    sinkhorn,
    view_loss,
)
from tests.command_line import run_group

TEMPERATURE = 0.07


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loop_softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return np.array([power / sum(powers) for power in powers])


def loop_sinkhorn(logits: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """SwAV's appendix A.1, in float64 with nothing but loops."""
    rows, prototypes = logits.shape
    shares = np.exp((logits - logits.max()) / temperature)
    shares = shares / shares.sum()
    for _ in range(iterations):
        for prototype in range(prototypes):
            shares[:, prototype] /= shares[:, prototype].sum() * prototypes
        for row in range(rows):
            shares[row] /= shares[row].sum() * rows
    return shares * rows


def test_sinkhorn_is_the_papers():
    logits = random(7, 5)
    expected = loop_sinkhorn(logits.double().numpy(), TEMPERATURE)
    targets = sinkhorn(logits, TEMPERATURE)
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(targets.sum(dim=1).numpy(), 1.0, atol=1e-6)


def test_sinkhorn_uses_all_prototypes_alike_where_a_softmax_would_take_one():
    logits = random(64, 8) * 0.1
    logits[:, 3] += 1  # every row prefers it
    assert (logits.softmax(dim=1).argmax(dim=1) == 3).all()
    use = sinkhorn(logits, TEMPERATURE, iterations=50).sum(dim=0)
    np.testing.assert_allclose(use.numpy(), 8.0, rtol=0.02)


def test_padding_moves_nothing_in_sinkhorn_and_gets_nothing():
    logits = random(6, 5)
    counted = torch.tensor([True, False, True, True, False, True])
    targets = sinkhorn(logits, TEMPERATURE, counted)
    torch.testing.assert_close(targets[counted], sinkhorn(logits[counted], TEMPERATURE))
    assert (targets[~counted] == 0).all()
    assert sinkhorn(logits[:0], TEMPERATURE).shape == (0, 5)
    assert (sinkhorn(logits, TEMPERATURE, torch.zeros(6, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("shares", [[4, 4], [3, 5], [1, 2, 5, 0]])
def test_sinkhorn_and_center_over_ranks_equal_those_of_one(tmp_path: Path, shares: list[int]):
    logits, counted = random(8, 5), torch.tensor([True] * 6 + [False, True])
    source, target = tmp_path / "given.npz", tmp_path / "found"
    np.savez(source, logits=logits, counted=counted, shares=shares)
    words = ("-m", "tests.objectives.sinkhorn_worker", source, target)
    for done in run_group([words] * len(shares)):
        assert done.returncode == 0, done.stderr
    found = [np.load(f"{target}.{rank}.npz") for rank in range(len(shares))]
    together = np.concatenate([each["targets"] for each in found])
    np.testing.assert_allclose(together, sinkhorn(logits, 0.07, counted).numpy(), atol=1e-6)
    expected = 0.1 * logits[counted].double().mean(dim=0).numpy()
    for each in found:
        np.testing.assert_allclose(each["center"], expected, atol=1e-6)


def test_a_center_is_subtracted_and_updated_once_per_step():
    first, second = random(3, 5), random(5, 5, seed=1)
    center = Center(5, momentum=0.8)
    targets = center(first, TEMPERATURE, step=0)
    expected = np.stack([loop_softmax(row, TEMPERATURE) for row in first.double().numpy()])
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-6)
    center(second, TEMPERATURE, step=0)  # a second micro-batch: the center is unchanged so far
    assert (center.center == 0).all()
    center.follow()
    mean = torch.cat([first, second]).double().mean(dim=0)
    np.testing.assert_allclose(center.center.numpy(), 0.2 * mean.numpy(), atol=1e-6)
    moved = center(first, TEMPERATURE, step=1)
    rows = first.double().numpy() - 0.2 * mean.numpy()
    expected = np.stack([loop_softmax(row, TEMPERATURE) for row in rows])
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-5)


def test_a_step_that_was_not_applied_leaves_nothing_in_the_center():
    center = Center(5)
    center(random(3, 5) + 100, TEMPERATURE, step=0)  # a step with a non-finite gradient
    center(random(3, 5), TEMPERATURE, step=1)
    center.follow()
    torch.testing.assert_close(center.center, 0.1 * random(3, 5).mean(dim=0))
    before = center.center.clone()
    center(random(3, 5), TEMPERATURE, step=2, counted=torch.zeros(3, dtype=torch.bool))
    center.follow()
    torch.testing.assert_close(center.center, before)


def test_the_view_loss_is_dinos_over_all_pairs_but_a_view_with_itself():
    targets = random(2, 3, 5).softmax(dim=-1)
    logits = random(6, 3, 5, seed=1)
    pairs = []
    for teacher in range(2):
        for student in range(6):
            if teacher == student:
                continue
            for image in range(3):
                share = loop_softmax(logits[student, image].double().numpy(), 0.1)
                target = targets[teacher, image].double().numpy()
                pairs.append(-sum(p * math.log(q) for p, q in zip(target, share, strict=True)))
    assert view_loss(targets, logits, 0.1).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_the_patch_loss_is_ibots_with_equal_weight_per_image():
    # Two images: one with three masked patches, one with one; and a padding row.
    targets, logits = random(5, 4).softmax(dim=-1), random(5, 4, seed=1)
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0, 0.0]) / 2
    each = []
    for target, row in zip(targets.double().numpy(), logits.double().numpy(), strict=True):
        share = loop_softmax(row, 0.1)
        each.append(-sum(p * math.log(q) for p, q in zip(target, share, strict=True)))
    np.testing.assert_allclose(cross_entropy(targets, logits, 0.1).numpy(), each, rtol=1e-5)
    expected = (np.mean(each[:3]) + each[3]) / 2
    assert patch_loss(targets, logits, weights, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_autocast_rounds_neither_the_losses_nor_the_center():
    # Logits that bfloat16 represents exactly, so that any difference comes from later rounding.
    logits = random(4, 3, 64, seed=1).bfloat16()
    teacher_logits = random(6, 64).bfloat16()
    expected, center = [], Center(64)
    for enabled in (False, True):
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            targets = center(teacher_logits, TEMPERATURE, step=0)
            loss = view_loss(targets.unflatten(0, (2, 3)), leaf, 0.1)
            loss = loss + patch_loss(targets, leaf.flatten(0, 1)[:6], torch.ones(6) / 6, 0.1)
        assert loss.dtype == torch.float32
        loss.backward()
        assert leaf.grad is not None
        expected.append((loss.detach(), leaf.grad, center._sum.clone()))
        center._sum.zero_()
    for without, with_it in zip(*expected, strict=True):
        torch.testing.assert_close(with_it, without, rtol=0, atol=0)


def loop_koleo(features: np.ndarray) -> tuple[float, np.ndarray]:
    """Its value and its gradient, in float64 with nothing but loops."""
    lengths = [np.linalg.norm(row) for row in features]
    points = np.array([row / length for row, length in zip(features, lengths, strict=True)])
    value, slopes = 0.0, np.zeros_like(points)
    for i, point in enumerate(points):
        others = [j for j in range(len(points)) if j != i]
        distance, j = min((np.linalg.norm(point - points[j]), j) for j in others)
        value -= math.log(distance) / len(points)
        # The gradient of the logarithm of a distance: the difference over the squared distance.
        push = -(point - points[j]) / distance**2 / len(points)
        slopes[i] += push
        slopes[j] -= push
    # Only the component orthogonal to a row counts, because rows are normalized.
    across = [
        (slope - point * (point @ slope)) / length
        for point, slope, length in zip(points, slopes, lengths, strict=True)
    ]
    return value, np.array(across)


@pytest.mark.parametrize(("apart", "rel"), [(1.0, 1e-5), (1e-2, 1e-4), (1e-3, 1e-3)])
def test_koleo_is_the_mean_logarithm_of_the_nearest_distance(apart: float, rel: float):
    # Three pairs, five times as far from each other: cosines in float32 hardly tell small distances
    # apart, and which of two neighbors is nearer would depend on the processor.
    halves = torch.tensor([[0.5], [-0.5]]) * random(3, 1, 4, seed=2)
    pairs = (5 * random(3, 1, 4) + halves).view(6, 4)
    features = random(1, 4, seed=1) + apart * pairs
    expected, slopes = loop_koleo(features.double().numpy())
    leaf = features.requires_grad_()
    value = koleo(leaf)
    value.backward()
    assert leaf.grad is not None
    assert value.item() == pytest.approx(expected, rel=rel)
    found = leaf.grad.double().numpy()
    assert np.linalg.norm(found - slopes) < rel * np.linalg.norm(slopes)


def test_koleo_pushes_neighbors_apart_and_survives_twins_in_half_precision():
    features = random(6, 4).bfloat16()
    features[1] = features[0]
    leaf = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(leaf)
    assert loss.dtype == torch.float32
    loss.backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    spread = torch.eye(4)
    assert koleo(spread) < koleo(spread + 0.5)


def test_a_heads_logits_are_cosines_with_its_prototypes():
    torch.manual_seed(0)
    head = ProjectionHead(width=8, hidden=16, layers=3, bottleneck=6, prototypes=10)
    features = random(4, 8)
    logits = head(features)
    assert logits.shape == (4, 10)
    assert [tuple(each.weight.shape) for each in head.layers if hasattr(each, "weight")] == [
        (16, 8),
        (16, 16),
        (6, 16),
    ]
    rows = head.layers(features)
    expected = torch.cosine_similarity(
        rows.unsqueeze(1), head.prototypes.weight.unsqueeze(0), dim=-1
    )
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        head.prototypes.weight *= 7  # the length has no effect
    torch.testing.assert_close(head(features), logits, atol=1e-6, rtol=1e-5)
