"""The analytic cost of a training step against the network itself: its parameters one by one, the
bytes that autograd keeps, and the operations that torch counts.
"""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VitConfig
from ssl_vit.models.cost import Arithmetic, Precision
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import DinoConfig, MaeConfig
from ssl_vit.objectives.cost import objective_cost
from ssl_vit.objectives.mae.config import num_hidden_patches
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.recipes import RECIPES, find_recipe
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


def kept_by(objective: Objective, batch: MaskedBatch, precision: str) -> int:
    """What one forward pass of training keeps."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return kept_bytes(objective, lambda: objective(batch, 0))


def build(variant: str) -> tuple[VitConfig, Objective]:
    backbone = VitConfig(**PLAIN | VARIANTS[variant])
    torch.manual_seed(0)
    return backbone, build_objective(MAE, VisionTransformer(backbone), DataConfig(), 1)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_parameters_are_counted_exactly(name: str):
    config = find_recipe(name)
    with torch.device("meta"):
        objective = build_objective(
            config.objective, VisionTransformer(config.backbone), config.data, total_steps=1
        )
    cost = objective_cost(config.objective, config.backbone, Arithmetic("bfloat16", "cuda"))
    assert cost.trained == sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert cost.frozen == sum(p.numel() for p in objective.parameters() if not p.requires_grad)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bytes_kept_for_the_backward_pass_are_those_autograd_keeps(
    variant: str, precision: Precision
):
    backbone, objective = build(variant)
    cost = objective_cost(MAE, backbone, Arithmetic(precision, "cpu"))
    assert cost.trained == sum(p.numel() for p in objective.parameters())
    expected = IMAGES * cost.kept_bytes
    if precision == "bfloat16":
        expected += 2 * cost.cast_weights
    found = kept_by(objective, batch_of(backbone), precision)
    assert found == pytest.approx(expected, rel=0.04)


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
    cost = objective_cost(MAE, backbone, Arithmetic("float32", "cpu"))
    assert IMAGES * cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("ibot_prototypes", [0, 256])
# A third of 2 × 3 global and 3 × 3 local views are whole numbers.
@pytest.mark.parametrize(("local_crops", "drop_path"), [(0, 0.0), (3, 0.0), (3, 1 / 3)])
def test_dinos_operations_and_kept_bytes_are_what_they_are_said_to_be(
    precision: Precision, ibot_prototypes: int, local_crops: int, drop_path: float
):
    backbone = VitConfig(**PLAIN | {"layer_scale": 1e-5, "drop_path": drop_path})
    config = DinoConfig(
        prototypes=512,
        bottleneck=64,
        head_hidden=128,
        local_crops=local_crops,
        local_size=32,
        # Always as many masked patches as there are on average.
        mask_probability=1.0,
        min_mask_ratio=0.5,
        ibot_prototypes=ibot_prototypes,
        ibot_bottleneck=32,
    )
    torch.manual_seed(0)
    objective = build_objective(config, VisionTransformer(backbone), DataConfig(), total_steps=9)
    batch = dino_batch(config, backbone)
    images = len(batch.numbers)
    cost = objective_cost(config, backbone, Arithmetic(precision, "cpu"))
    # Three products for each of the student's, one for each of the teacher's.
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16),
    ):
        objective(batch, 0).loss.backward()
    assert 3 * images * cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    expected = images * cost.kept_bytes + (2 * cost.cast_weights if precision == "bfloat16" else 0)
    assert kept_by(objective, batch, precision) == pytest.approx(expected, rel=0.1)
