"""Augmentations are functions of their key, and leave the global generators alone."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.models.augment import Augment

POLICIES = ["rand-m9-mstd0.5-inc1", "3a", ""]


def image() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 48), np.uint8))


def after(augment: Augment, key: int) -> Tensor:
    pixels = image()
    augment(pixels, key)
    return pixels


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_key_gives_the_same_image_in_any_order_and_process(policy: str) -> None:
    augment = Augment(policy, 0.5, (32, 48))
    first = [after(augment, key) for key in range(12)]
    again = pickle.loads(pickle.dumps(augment))
    second = [after(again, key) for key in reversed(range(12))]
    assert all(map(torch.equal, first, reversed(second)))
    assert len({each.numpy().tobytes() for each in first}) > 4


def test_global_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def numbers(augment: Augment | None) -> list[float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if augment:
            after(augment, 7)
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assert numbers(Augment("rand-m9-mstd0.5-inc1", 1.0, (32, 48))) == numbers(None)


@pytest.mark.parametrize("policy", ["rand-m10-n6-inc1", "rand-m1-n6-p1", "rand-m15-n6-mmax30-inc1"])
def test_posterizing_leaves_a_bit_at_every_level(policy: str) -> None:
    """timm leaves none at some levels, and Pillow refuses that."""
    augment = Augment(policy, 0.0, (32, 48))
    for key in range(60):
        after(augment, key)


def test_erasing_changes_one_rectangle() -> None:
    for key in range(10):
        changed = (after(Augment("", 1.0, (32, 48)), key) != image()).any(dim=0)
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        area = int(rows.sum()) * int(columns.sum())
        assert area == (rows.nonzero().max() - rows.nonzero().min() + 1) * int(columns.sum())
        assert changed.sum() > 0.95 * area  # noise may hit the pixel that was there
        assert 0.01 < area / (32 * 48) < 0.4


def test_nothing_is_changed_without_any() -> None:
    assert torch.equal(after(Augment("", 0.0, (32, 48)), 3), image())
