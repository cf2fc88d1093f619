"""Stems: their grids, and that neither other samples nor hidden pixels leak through them."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from ssl_vit.config import UserError
from ssl_vit.models.config import VitConfig
from ssl_vit.models.stem import ConvStem, PatchStem, build_stem
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.mae.objective import Mae
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.overrides import apply_overrides
from ssl_vit.run.config import RunConfig

StemKind = Literal["patch", "conv"]


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16, 32])
def test_a_conv_stem_makes_the_grid_of_its_patch_size(patch_size: int) -> None:
    tokens = ConvStem(patch_size, width=48)(torch.zeros(2, 3, 2 * patch_size, 3 * patch_size))
    assert tokens.shape == (2, 6, 48)


@pytest.mark.parametrize("patch_size", [1, 7, 14, 16])
def test_a_patch_stem_makes_any_patch_size(patch_size: int) -> None:
    tokens = PatchStem(patch_size, width=48)(torch.zeros(2, 3, 2 * patch_size, 3 * patch_size))
    assert tokens.shape == (2, 6, 48)


@pytest.mark.parametrize("kind", ["patch", "conv"])
def test_tokens_come_row_by_row(kind: StemKind) -> None:
    torch.manual_seed(0)
    stem = build_stem(VitConfig(width=48, heads=3, patch_size=8, stem=kind)).eval()
    blank = torch.zeros(1, 3, 40, 56)
    dotted = blank.clone()
    # A patch's first pixel affects no other patch, even with an overlapping stem.
    dotted[:, :, 2 * 8, 5 * 8] = 9.0  # row 2, column 5 of a 5 × 7 grid
    moved = (stem(dotted) - stem(blank)).norm(dim=-1)[0]
    assert moved.nonzero().tolist() == [[2 * 7 + 5]]


@pytest.mark.parametrize("patch_size", [1, 6, 14, 64])
def test_a_conv_stem_refuses_what_halving_cannot_make_and_lists_what_it_can(
    patch_size: int,
) -> None:
    with pytest.raises(ValueError, match=r"2, 4, 8, 16, 32.* not "):
        ConvStem(patch_size, width=48)


def test_the_config_refuses_it_too_before_any_torch() -> None:
    overrides = ["backbone.stem=conv", "backbone.patch_size=14"]
    with pytest.raises(UserError) as caught:
        apply_overrides(RunConfig(recipe="test"), overrides)
    assert "backbone.patch_size=14" in caught.value.problem
    assert "2, 4, 8, 16, 32" in caught.value.remedy


def test_a_sample_is_the_same_alone_and_beside_any_other() -> None:
    torch.manual_seed(0)
    stem = ConvStem(8, width=48)
    ours, others = torch.randn(1, 3, 32, 32), torch.randn(3, 3, 32, 32)
    beside = stem(torch.cat([ours, 1e3 * others + 500]))[:1]
    torch.testing.assert_close(beside, stem(ours), atol=1e-5, rtol=1e-5)


def test_a_stem_is_the_same_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    stem, batch = ConvStem(8, width=48), torch.randn(4, 3, 32, 32)
    trained = stem.train()(batch)
    torch.testing.assert_close(stem.eval()(batch), trained, atol=0, rtol=0)
    assert not list(stem.buffers())  # running statistics would be buffers


def make_mae(stem: StemKind) -> Mae:
    torch.manual_seed(0)
    backbone = VitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=32, stem=stem)
    config = MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
    scale = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Mae(config, VisionTransformer(backbone), scale).eval()


def random_pixels(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.fixture
def hidden() -> Tensor:
    """(3, 16) bool, 12 true in each row."""
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    return noise.argsort(dim=1) < 12


def paint(images: Tensor, hidden: Tensor, paint: Tensor) -> Tensor:
    """Replace hidden patches by those of ``paint``, patch by patch."""
    painted = images.clone()
    for image, patch in hidden.nonzero().tolist():
        row, column = divmod(patch, 4)
        rows, columns = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        painted[image, :, rows, columns] = paint[image, :, rows, columns]
    return painted


@pytest.mark.parametrize("kind", ["patch", "conv"])
@pytest.mark.parametrize("color", ["white", "noise"])
@torch.no_grad()
def test_hidden_pixels_cannot_reach_visible_features(
    kind: StemKind, color: str, hidden: Tensor
) -> None:
    mae, clean = make_mae(kind), random_pixels(1)
    colors = torch.full_like(clean, 255) if color == "white" else random_pixels(2)
    spoiled = paint(clean, hidden, colors)
    assert (spoiled != clean).any()
    visible, _ = visible_and_hidden(hidden, 12)

    features = mae.encode_visible(mae.pixel_scale(clean), hidden, visible)
    spoiled_features = mae.encode_visible(mae.pixel_scale(spoiled), hidden, visible)

    torch.testing.assert_close(spoiled_features, features, atol=0, rtol=0)


@torch.no_grad()
def test_without_blanking_a_conv_stem_does_leak(hidden: Tensor) -> None:
    mae, clean = make_mae("conv"), random_pixels(1)
    spoiled = paint(clean, hidden, random_pixels(2))
    stem = mae.backbone.patch_embed
    before, after = stem(mae.pixel_scale(clean)), stem(mae.pixel_scale(spoiled))
    assert (after - before).abs()[~hidden].max() > 0.01


@pytest.mark.parametrize("kind", ["patch", "conv"])
@torch.no_grad()
def test_visible_pixels_do_reach_visible_features(kind: StemKind, hidden: Tensor) -> None:
    mae, clean = make_mae(kind), random_pixels(1)
    spoiled = paint(clean, ~hidden, random_pixels(2))
    visible, _ = visible_and_hidden(hidden, 12)
    features = mae.encode_visible(mae.pixel_scale(clean), hidden, visible)
    moved = mae.encode_visible(mae.pixel_scale(spoiled), hidden, visible)
    assert (moved.patches - features.patches).abs().amin(dim=(0, 1)).max() > 0
    assert not torch.allclose(moved.cls, features.cls, atol=1e-3)
