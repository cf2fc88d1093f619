"""What is counted without data against the network with data, figures worked out by hand, and
published ones.
"""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_vit.cost.counting import backbone_parameters, count_cost, count_parameters
from ssl_vit.cost.network import Arithmetic, Precision
from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import DinoConfig, MaeConfig, SimMimConfig
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.config import num_hidden_patches
from ssl_vit.objectives.one_crop.views import MaskedBatch
from tests.kept_bytes import kept_bytes
from tests.objectives.test_dino import batch_of as dino_batch

IMAGES = 4
MAE = MaeConfig(decoder_width=64, decoder_depth=2, decoder_heads=4)
PLAIN: dict[str, Any] = {
    "width": 96,
    "depth": 4,
    "heads": 4,
    "patch_size": 8,
    "image_size": 64,
    "position": "sincos",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conv": {"stem": "conv"},
    "registers": {"registers": 4, "position": "learned"},
    "swiglu": {"feed_forward": "swiglu", "layer_scale": 1e-5},
    "learned": {"position": "learned"},
    "drop_path": {"drop_path": 0.5, "layer_scale": 1e-5},
}


def batch_of(backbone: VitConfig) -> MaskedBatch:
    shape = (IMAGES, 3, backbone.image_size, backbone.image_size)
    count = num_hidden_patches(backbone.num_patches, MAE.mask_ratio)
    order = torch.rand(IMAGES, backbone.num_patches).argsort(dim=1)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return MaskedBatch(images, order < count, torch.arange(IMAGES))


def kept_by(objective: Objective, batch: Any, precision: str) -> int:
    """What one forward pass of training keeps."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return kept_bytes(objective, lambda: objective(batch, 0))


def build(variant: str) -> tuple[VitConfig, Objective]:
    backbone = VitConfig(**PLAIN | VARIANTS[variant])
    torch.manual_seed(0)
    return backbone, build_objective(MAE, VisionTransformer(backbone), DataConfig(), 1)


@pytest.mark.parametrize(
    ("size", "settings", "parameters"),
    [
        # timm's, without a classifier.
        ("base", {}, 85_798_656),
        ("large", {}, 303_301_632),
        ("huge", {"patch_size": 14}, 630_764_800),
        # DINOv2's, whose positions are of 518 pixels.
        (
            "giant",
            {
                "patch_size": 14,
                "image_size": 518,
                "feed_forward": "swiglu",
                "layer_scale": 1e-5,
            },
            1_136_480_768 - 1536,  # less its mask token
        ),
    ],
)
def test_backbones_have_as_many_parameters_as_published(
    size: str, settings: dict[str, Any], parameters: int
):
    assert backbone_parameters(VitConfig(**VIT_SIZES[size], **settings)) == parameters


def test_an_objectives_parameters_are_told_apart():
    backbone = VitConfig(**PLAIN)
    # By hand: stem, class token, blocks, norm.
    width, block = 96, 12 * 96**2 + 13 * 96
    encoder = 192 * width + width + width + 4 * block + 2 * width
    decoder = 97 * 64 + 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + 65 * 192
    found = count_parameters(MAE, backbone)
    assert (found.backbone, found.trained, found.frozen) == (encoder, encoder + decoder, 0)
    config = DinoConfig(prototypes=64, bottleneck=16, head_hidden=32, local_size=32)
    head = 97 * 32 + 33 * 32 + 33 * 16 + 16 * 64
    found = count_parameters(config, backbone)
    assert (found.backbone, found.frozen) == (encoder, encoder + head)
    assert found.trained == encoder + head + width  # and the mask token


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bytes_kept_for_the_backward_pass_are_those_autograd_keeps(
    variant: str, precision: Precision
):
    backbone, objective = build(variant)
    cost = count_cost(MAE, backbone, Arithmetic(precision, "cpu"))
    found = kept_by(objective, batch_of(backbone), precision)
    assert found == pytest.approx(IMAGES * cost.kept_bytes + cost.fixed_bytes, rel=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_torch_counts(variant: str):
    backbone, objective = build(variant)
    # In bfloat16, where attention is two plain products: torch does not count the fused one's.
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16),
        torch.no_grad(),
    ):
        objective(batch_of(backbone), 0)
    for arithmetic in (Arithmetic("bfloat16", "cpu"), Arithmetic("float16", "cuda")):
        cost = count_cost(MAE, backbone, arithmetic)
        assert IMAGES * cost.step_flops == 3 * counter.get_total_flops()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("ibot_prototypes", [0, 256])
# A third of 2 × 3 global and 3 × 3 local views are whole numbers.
@pytest.mark.parametrize(("local_crops", "drop_path"), [(0, 0.0), (3, 0.0), (3, 1 / 3)])
def test_dinos_operations_and_kept_bytes_are_those_of_a_step_with_data(
    precision: Precision, ibot_prototypes: int, local_crops: int, drop_path: float
):
    backbone = VitConfig(**PLAIN | {"layer_scale": 1e-5, "drop_path": drop_path})
    config = DinoConfig(
        prototypes=512,
        bottleneck=64,
        head_hidden=128,
        local_crops=local_crops,
        local_size=32,
        # The same number of masked patches in every view, and no padding.
        mask_probability=1.0,
        min_mask_ratio=0.5,
        ibot_prototypes=ibot_prototypes,
        ibot_bottleneck=32,
    )
    torch.manual_seed(0)
    objective = build_objective(config, VisionTransformer(backbone), DataConfig(), total_steps=9)
    batch = dino_batch(config, backbone)
    images = len(batch.numbers)
    cost = count_cost(config, backbone, Arithmetic(precision, "cpu"))
    # Three products for each of the student's, but for the gradient of pixels; one for each of the
    # teacher's.
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16),
    ):
        objective(batch, 0).loss.backward()
    assert images * cost.step_flops == pytest.approx(counter.get_total_flops(), rel=0.015)
    found = kept_by(objective, batch, precision)
    assert images * cost.kept_bytes + cost.fixed_bytes == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(("device", "precision"), [("cuda", "bfloat16"), ("cpu", "bfloat16")])
def test_a_block_keeps_what_is_worked_out_by_hand(device: Any, precision: Precision):
    def cost(depth: int) -> Any:
        backbone = VitConfig(**PLAIN | {"depth": depth})
        return count_cost(MAE, backbone, Arithmetic(precision, device))

    # 16 of 64 patches are seen, and the class token; layers are 96 wide and have 4 heads.
    tokens, width, heads = 17, 96, 4
    one, two = cost(2), cost(3)
    norms = 2 * tokens * (width + 2) * 4
    inputs = tokens * (width + width + width + 4 * width) * 2  # of the four linear layers
    attention = 3 * tokens * width * 2
    # A GPU's kernel keeps normalizers instead of scores.
    attention += heads * tokens * 4 if device == "cuda" else heads * tokens**2 * 2
    block = norms + inputs + attention + tokens * 4 * width * 2  # GELU's input
    assert two.kept_bytes - one.kept_bytes == block
    assert two.checkpointed_bytes - one.checkpointed_bytes == tokens * width * 4
    weights = 12 * width**2 + (3 + 1 + 4 + 1) * width  # matrices and their biases
    assert two.fixed_bytes - one.fixed_bytes == 2 * weights


def test_the_block_that_is_computed_again_is_the_largest():
    found = count_cost(MAE, VitConfig(**PLAIN), Arithmetic("bfloat16", "cuda"))
    # The decoder's, over all 65 tokens; its input is kept anyway.
    tokens, width, heads = 65, 64, 4
    norms = tokens * (2 * width + 4) * 4
    inside = tokens * (7 + 3 + 4) * width * 2 + heads * tokens * 4
    assert found.recomputed_bytes == norms + inside - tokens * width * 4
    assert found.working_bytes == 2 * tokens * 4 * width * 2


def test_what_lives_as_long_as_the_forward_pass_is_held():
    backbone = VitConfig(**PLAIN)
    pixels = 3 * backbone.image_size**2 * 4
    for precision in ("bfloat16", "float32"):
        held = count_cost(MAE, backbone, Arithmetic(precision, "cuda")).held_bytes
        # Not the images: the visible patches are cut out of them.
        assert held <= 0.3 * pixels


def test_normalized_prototypes_do_not_grow_with_images():
    config = DinoConfig(
        prototypes=4096, bottleneck=64, head_hidden=32, local_crops=0, ibot_weight=0
    )
    backbone = VitConfig(**PLAIN)
    found = count_cost(config, backbone, Arithmetic("float32", "cpu"))
    assert found.fixed_bytes == pytest.approx(4096 * 64 * 4, rel=0.1)


SIMMIM = SimMimConfig(mask_unit=8)
RELATIVES: dict[str, dict[str, Any]] = {
    "shared": {},
    "per_block": {"relative_tables": "per_block"},
    "linear": {"drop_path": 0.6, "drop_path_rule": "linear", "layer_scale": 0.1},
}


@pytest.mark.parametrize("variant", RELATIVES)
def test_relative_positions_have_as_many_parameters_as_the_network_itself(variant: str):
    backbone = VitConfig(**PLAIN | {"position": "relative"} | RELATIVES[variant])
    # By hand: as without, but for 3 × 4 × 96 biases of keys, and a table of 15 × 15 + 3 offsets.
    width, depth, heads = 96, 4, 4
    block = 12 * width**2 + 12 * width + (2 * width if backbone.layer_scale else 0)
    tables = (depth if variant == "per_block" else 1) * (15 * 15 + 3) * heads
    expected = 192 * width + width + width + depth * block + 2 * width + tables
    built = sum(p.numel() for p in VisionTransformer(backbone).parameters())
    assert backbone_parameters(backbone) == built == expected
    found = count_parameters(SIMMIM, backbone)
    assert (found.backbone, found.frozen) == (expected, 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", RELATIVES)
def test_relative_positions_keep_what_autograd_keeps_and_cost_what_torch_counts(
    variant: str, precision: Precision
):
    backbone = VitConfig(**PLAIN | {"position": "relative"} | RELATIVES[variant])
    torch.manual_seed(0)
    objective = build_objective(SIMMIM, VisionTransformer(backbone), DataConfig(), 1)
    # As many as are needed for a whole number of kept samples in each block: 1, .8, .6 and .4.
    count = 5
    hidden = torch.rand(count, 64).argsort(dim=1) < SIMMIM.num_hidden(backbone)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    batch = MaskedBatch(images, hidden, torch.arange(count))
    cost = count_cost(SIMMIM, backbone, Arithmetic(precision, "cpu"))
    found = kept_by(objective, batch, precision)
    assert count * cost.kept_bytes + cost.fixed_bytes == pytest.approx(found, rel=0.01)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16),
        torch.no_grad(),
    ):
        objective(batch, 0)
    assert count * cost.step_flops == pytest.approx(3 * counter.get_total_flops(), rel=1e-6)


def test_a_bias_on_a_gpu_is_kept_once_for_all_images_and_its_gradient_is_not():
    def cost(depth: int, **settings: Any) -> Any:
        backbone = VitConfig(**PLAIN | {"depth": depth} | settings)
        return count_cost(SIMMIM, backbone, Arithmetic("bfloat16", "cuda"))

    plain = [cost(depth) for depth in (2, 3)]
    relative = [cost(depth, position="relative") for depth in (2, 3)]
    for found, without in zip(relative, plain, strict=True):
        assert found.kept_bytes == pytest.approx(without.kept_bytes, rel=0.001)
    # The fused kernel keeps the bias in half precision, and no scores; autocast keeps its copy of
    # the biases of queries, keys and values if they are one parameter.
    bias, joined = 4 * 65 * 65 * 2, 3 * 96 * 2
    added = [two.fixed_bytes - one.fixed_bytes for one, two in (plain, relative)]
    assert added[1] == added[0] + bias - joined
    # Its gradient is that of every image before it is summed: (heads, 65, 65).
    assert relative[0].working_bytes == 2 * max(4 * 65 * 65 * 2, 65 * 4 * 96 * 2)
    assert plain[0].working_bytes == 2 * 65 * 4 * 96 * 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dinos_cost_with_biases_that_are_resized_to_local_views(precision: Precision):
    backbone = VitConfig(**PLAIN | {"position": "relative", "layer_scale": 0.1})
    config = DinoConfig(
        prototypes=512,
        bottleneck=64,
        head_hidden=128,
        local_crops=3,
        local_size=32,
        mask_probability=1.0,
        min_mask_ratio=0.5,
    )
    torch.manual_seed(0)
    objective = build_objective(config, VisionTransformer(backbone), DataConfig(), total_steps=9)
    batch = dino_batch(config, backbone)
    images = len(batch.numbers)
    cost = count_cost(config, backbone, Arithmetic(precision, "cpu"))
    found = kept_by(objective, batch, precision)
    assert images * cost.kept_bytes + cost.fixed_bytes == pytest.approx(found, rel=0.02)
