"""The backbone against timm's with the same weights, and against the papers' own numbers."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Features
from ssl_vit.models.config import VitConfig
from ssl_vit.models.timm_weights import load_timm_weights
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.models.vit import VisionTransformer

define_missing_ops()
import timm  # noqa: E402 - only importable after the line above
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402


class Twin(NamedTuple):
    """One architecture in timm's settings and in ours, both shrunk in the same way."""

    timm_name: str
    timm_options: dict[str, Any]
    config: VitConfig


TWINS = {
    "tiny": Twin(
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 2},
        VitConfig(width=192, depth=2, heads=3, patch_size=16, image_size=64),
    ),
    "small": Twin(
        "vit_small_patch16_224",
        {"img_size": 64, "depth": 2},
        VitConfig(width=384, depth=2, heads=6, patch_size=16, image_size=64),
    ),
    "small_sincos": Twin(
        "vit_small_patch16_224",
        {"img_size": 64, "depth": 2},
        VitConfig(width=384, depth=2, heads=6, patch_size=16, image_size=64, position="sincos"),
    ),
    "small_registers_and_layer_scale": Twin(
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 56, "depth": 2},
        VitConfig(
            width=384,
            depth=2,
            heads=6,
            patch_size=14,
            image_size=56,
            registers=4,
            layer_scale=1e-5,
        ),
    ),
    "giant_swiglu": Twin(
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 56, "depth": 1},
        VitConfig(
            width=1536,
            depth=1,
            heads=24,
            patch_size=14,
            image_size=56,
            registers=4,
            layer_scale=1e-5,
            feed_forward="swiglu",
        ),
    ),
}
# Patches (down, across): the training grid, a larger square, and a rectangle.
GRIDS = [(4, 4), (6, 6), (3, 5)]


def make_timm(twin: Twin, **options: Any) -> Any:
    return timm.create_model(
        twin.timm_name, num_classes=0, dynamic_img_size=True, **(twin.timm_options | options)
    ).eval()


def scramble(model: nn.Module) -> None:
    """Change all weights a lot: zero biases and scales of 1e-5 would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim < 2 else 0.5 / math.sqrt(parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


def images(config: VitConfig, grid: tuple[int, int]) -> Tensor:
    size = config.patch_size
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, grid[0] * size, grid[1] * size, generator=generator)


@torch.no_grad()
def assert_same_features(ours: VisionTransformer, theirs: Any, grid: tuple[int, int]) -> None:
    config = ours.config
    batch = images(config, grid)
    tokens = theirs.forward_features(batch)
    features = ours(batch)
    first = 1 + config.registers
    torch.testing.assert_close(features.cls, tokens[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.registers, tokens[:, 1:first], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patches, tokens[:, first:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TWINS)
def test_timm_loads_our_weights_strictly_and_computes_the_same_at_any_grid(name: str) -> None:
    twin = TWINS[name]
    ours = VisionTransformer(twin.config).eval()
    scramble(ours)
    theirs = make_timm(twin)

    theirs.load_state_dict(ours.state_dict(), strict=True)

    for grid in GRIDS:
        assert_same_features(ours, theirs, grid)


@pytest.mark.parametrize("name", TWINS)
def test_timms_weights_load_into_ours_and_compute_the_same_at_any_grid(name: str) -> None:
    twin = TWINS[name]
    theirs = make_timm(twin)
    scramble(theirs)
    ours = VisionTransformer(twin.config).eval()

    load_timm_weights(ours, theirs.state_dict())

    for grid in GRIDS:
        assert_same_features(ours, theirs, grid)


@pytest.mark.parametrize("name", ["tiny", "small_registers_and_layer_scale"])
def test_weights_of_another_grid_are_resized_as_timm_resizes_them(name: str) -> None:
    twin = TWINS[name]
    larger = make_timm(twin, img_size=6 * twin.config.patch_size)
    scramble(larger)
    expected = make_timm(twin)
    expected.load_state_dict(checkpoint_filter_fn(larger.state_dict(), expected), strict=True)
    ours = VisionTransformer(twin.config).eval()

    load_timm_weights(ours, larger.state_dict())

    assert_same_features(ours, expected, (4, 4))


def test_timms_classifier_is_left_out() -> None:
    twin = TWINS["tiny"]
    theirs = timm.create_model(twin.timm_name, num_classes=10, **twin.timm_options)
    assert "head.weight" in theirs.state_dict()

    load_timm_weights(VisionTransformer(twin.config), theirs.state_dict())


def test_weights_of_another_model_are_refused_by_name() -> None:
    small = make_timm(TWINS["small"]).state_dict()
    tiny = VisionTransformer(TWINS["tiny"].config)
    with pytest.raises(ValueError, match="cls_token"):
        load_timm_weights(tiny, small)
    with pytest.raises(ValueError, match=r"1 left over \(blocks\.9\.surprise\)"):
        load_timm_weights(tiny, tiny.state_dict() | {"blocks.9.surprise": torch.zeros(1)})


SMALL = VitConfig(width=32, depth=3, heads=2, patch_size=4, image_size=16)


@pytest.mark.parametrize("registers", [0, 3])
def test_features_have_the_promised_shapes(registers: int) -> None:
    model = VisionTransformer(SMALL.model_copy(update={"registers": registers}))
    features = model(images(SMALL, (4, 5)))
    assert features.cls.shape == (2, 32)
    assert features.registers.shape == (2, registers, 32)
    assert features.patches.shape == (2, 20, 32)


def test_encoding_some_tokens_ignores_the_others() -> None:
    model = VisionTransformer(SMALL).eval()
    tokens = model.embed(images(SMALL, (4, 4)))
    few = model.encode(tokens[:, [3, 7, 1]])
    assert few.patches.shape == (2, 3, 32)
    reordered = model.encode(tokens[:, [1, 3, 7]])
    # A transformer is equivariant to the order of its tokens.
    torch.testing.assert_close(few.patches[:, [2, 0, 1]], reordered.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(few.cls, reordered.cls, atol=1e-5, rtol=0)


def test_the_filler_replaces_the_tokens_of_hidden_patches_and_keeps_their_positions() -> None:
    model = VisionTransformer(SMALL)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, ::3] = True
    filler = torch.full((32,), 7.0)
    batch = images(SMALL, (4, 4))

    filled = model.embed(batch, hidden, filler)

    positions = model.pos_embed[:, 1:].expand(2, -1, -1)
    torch.testing.assert_close(filled[hidden], positions[hidden] + 7.0)
    torch.testing.assert_close(filled[~hidden], model.embed(batch)[~hidden], atol=0, rtol=0)


@pytest.mark.parametrize("size", [(18, 16), (16, 15), (2, 16)])
def test_images_that_are_no_whole_number_of_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} pixels are not a whole number of 4"):
        VisionTransformer(SMALL).embed(torch.zeros(1, 3, *size))


def test_layers_count_from_the_stem_to_the_final_norm() -> None:
    config = SMALL.model_copy(update={"registers": 2, "stem": "conv", "layer_scale": 0.1})
    model = VisionTransformer(config)
    heads = {"cls_token": 0, "reg_token": 0, "pos_embed": 0, "patch_embed": 0, "norm": 4}
    seen = set()
    for name, _ in model.named_parameters():
        first, *rest = name.split(".")
        expected = 1 + ["0", "1", "2"].index(rest[0]) if first == "blocks" else heads[first]
        assert model.layer_of(name) == expected, name
        seen.add(expected)
    assert seen == {0, 1, 2, 3, 4}


def test_linear_layers_start_within_the_xavier_bound_and_unbiased() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(SMALL.model_copy(update={"width": 64}))
    stem = model.patch_embed.proj
    weights = {"patch_embed.proj": (stem.weight, 3 * 4 * 4, 64)}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            weights[name] = (layer.weight, layer.in_features, layer.out_features)
    assert len(weights) == 1 + 3 * 4
    for name, (weight, fan_in, fan_out) in weights.items():
        bound = math.sqrt(6 / (fan_in + fan_out))  # Glorot & Bengio 2010, equation 16
        largest = weight.abs().max().item()
        assert 0.97 * bound < largest <= bound, name
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert not model.get_parameter(f"{name}.bias").any()


def test_the_other_scheme_is_a_normal_of_two_hundredths() -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"width": 64, "initialization": "truncated_normal"})
    weights = VisionTransformer(config).state_dict()
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "patch_embed.proj"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.1), name


def test_norms_start_as_identity_and_tokens_small() -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"width": 256, "registers": 8, "layer_scale": 1e-5})
    model = VisionTransformer(config)
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    for token in (model.cls_token, model.reg_token, model.pos_embed):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    assert (model.state_dict()["blocks.0.ls1.gamma"] == 1e-5).all()


def spread_over_copies(model: VisionTransformer) -> float:
    """The largest standard deviation of a feature over 32 copies of one image."""
    batch = images(SMALL, (4, 4))[:1].expand(32, -1, -1, -1)
    with torch.no_grad():
        return model(batch).patches.std(dim=0).max().item()


def test_drop_path_acts_in_training_only() -> None:
    torch.manual_seed(0)
    dropping = VisionTransformer(SMALL.model_copy(update={"drop_path": 0.5}))
    plain = VisionTransformer(SMALL)
    plain.load_state_dict(dropping.state_dict())

    assert spread_over_copies(dropping.train()) > 0.1
    assert spread_over_copies(plain.train()) < 1e-5

    batch = images(SMALL, (4, 4))
    features: Features = dropping.eval()(batch)
    torch.testing.assert_close(features, plain.eval()(batch), atol=0, rtol=0)


def test_no_parameter_is_frozen_and_the_sine_table_is_not_one() -> None:
    names = dict(VisionTransformer(TWINS["small_sincos"].config).named_parameters())
    assert "pos_embed" not in names
    assert all(parameter.requires_grad for parameter in names.values())
