"""From features to one vector an image, in three ways."""

import pytest
import torch

from ssl_vit.models.backbone import Features
from ssl_vit.models.pooling import Pool


@pytest.fixture
def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(2, 16, generator=generator),
        torch.randn(2, 3, 16, generator=generator),
        torch.randn(2, 5, 16, generator=generator),
    )


def test_cls_is_the_class_token(features: Features) -> None:
    assert Pool("cls", 16)(features) is features.cls


def test_mean_is_the_mean_of_the_patch_tokens_alone(features: Features) -> None:
    expected = sum(features.patches[:, i] for i in range(5)) / 5
    torch.testing.assert_close(Pool("mean", 16)(features), expected)


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_two_of_the_kinds_learn_nothing(kind: str) -> None:
    assert not list(Pool(kind, 16).parameters())  # type: ignore[arg-type] - a str in the list above


def test_attention_pooling_reads_the_patches_alone_and_in_any_order(features: Features) -> None:
    torch.manual_seed(0)
    pool = Pool("map", 16, heads=4).eval()
    pooled = pool(features)
    assert pooled.shape == (2, 16)
    shuffled = features._replace(
        cls=features.cls + 1, registers=features.registers + 1, patches=features.patches.flip(1)
    )
    torch.testing.assert_close(pool(shuffled), pooled)
    moved = features._replace(patches=features.patches + torch.arange(5.0).view(1, 5, 1))
    assert not torch.allclose(pool(moved), pooled, atol=1e-3)


def test_attention_pooling_learns_all_it_has(features: Features) -> None:
    torch.manual_seed(0)
    pool = Pool("map", 16, heads=4)
    pool(features).square().sum().backward()
    still = [name for name, p in pool.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
