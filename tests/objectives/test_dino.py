"""DINO, iBOT and DINOv2 as one objective, against its parts combined by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.data.views import Sample
from ssl_vit.errors import UserError
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import DinoConfig
from ssl_vit.objectives.dino.losses import koleo, patch_loss, sinkhorn, view_loss
from ssl_vit.objectives.dino.objective import Dino, _describe
from ssl_vit.objectives.dino.views import DinoBatch, DinoViews
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.recipes import read_config
from tests.pictures import draw_and_render

SIZE, PATCH, SIDE = 32, 8, 4
IMAGES = 3


def backbone_config(**changes: Any) -> VitConfig:
    base = VitConfig(width=32, depth=2, heads=2, patch_size=PATCH, image_size=SIZE)
    return base.model_copy(update=changes)


def dino_config(**changes: Any) -> DinoConfig:
    base = DinoConfig(
        prototypes=24,
        bottleneck=8,
        head_hidden=16,
        local_crops=2,
        local_size=16,
        mask_probability=0.7,
    )
    return base.model_copy(update=changes)


def make(config: DinoConfig, backbone: VitConfig | None = None) -> Dino:
    torch.manual_seed(0)
    model = VisionTransformer(backbone or backbone_config())
    objective = Dino(config, model, PixelScale((0.5,) * 3, (0.25,) * 3), total_steps=100)
    with torch.no_grad():  # a teacher that differs from its student
        for parameter in objective.teacher.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return objective


def batch_of(config: DinoConfig, backbone: VitConfig | None = None) -> DinoBatch:
    views = DinoViews(config, backbone or backbone_config())
    rng = np.random.Generator(np.random.Philox(5))
    pixels = (rng.random((IMAGES, 48, 40, 3)) * 255).astype(np.uint8)
    made = [draw_and_render(views, image, rng) for image in pixels]
    draws = [draw for _, draw in made]
    crops = [
        torch.stack([groups[group] for groups, _ in made], dim=1)
        for group in range(len(views.crop_sizes))
    ]
    return views.collate(crops, draws, [Sample(number, -1) for number in range(IMAGES)])


def normalized(objective: Dino, images: Tensor, rows: Tensor) -> Tensor:
    return objective._prepare(images, rows)


@pytest.mark.parametrize("prototypes", [0, 12])
def test_the_loss_is_its_parts_put_together(prototypes: int):
    config = dino_config(ibot_prototypes=prototypes, ibot_bottleneck=6)
    objective, batch = make(config), batch_of(config)
    student, teacher = objective.student, objective.teacher.module
    globals_ = normalized(objective, batch.images, batch.color_jitter[: 2 * IMAGES])
    local = normalized(objective, batch.local, batch.color_jitter[2 * IMAGES :])
    temperature = 0.04 + (0.07 - 0.04) * 15 / 30  # half of the warm-up of 30 steps
    with torch.no_grad():
        features = teacher.backbone(globals_)
        targets = sinkhorn(teacher.head(features.cls), temperature)
        rows = features.patches.reshape(-1, 32)[batch.masked]
        patch_head = teacher.patch_head if prototypes else teacher.head
        patch_targets = sinkhorn(patch_head(rows), temperature, batch.weights > 0)
    features = student.backbone.encode(
        student.backbone.embed(globals_, batch.hidden, objective.mask_token)
    )
    logits = [student.head(features.cls), student.head(student.backbone(local).cls)]
    own_head = student.patch_head if prototypes else student.head
    patches = own_head(features.patches.reshape(-1, 32)[batch.masked])
    expected = {
        "dino_loss": view_loss(
            targets.view(2, IMAGES, -1), torch.cat(logits).view(4, IMAGES, -1), 0.1
        ),
        "ibot_loss": patch_loss(patch_targets, patches, batch.weights, 0.1),
        "koleo_loss": koleo(features.cls[:IMAGES]) + koleo(features.cls[IMAGES:]),
    }
    output = objective(batch, step=15)
    for name, value in expected.items():
        assert output.metrics[name].item() == pytest.approx(value.item(), rel=1e-5)
    total = expected["dino_loss"] + expected["ibot_loss"] + 0.1 * expected["koleo_loss"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_each_head_has_its_own_prototypes_and_bottleneck():
    student = make(dino_config(ibot_prototypes=12, ibot_bottleneck=6)).student
    assert student.head.prototypes.weight.shape == (24, 8)
    assert student.patch_head is not None
    assert student.patch_head.prototypes.weight.shape == (12, 6)


def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher():
    config = dino_config(ibot_prototypes=12)
    objective = make(config, backbone_config(registers=1, layer_scale=1e-5))
    objective(batch_of(config), step=0).loss.backward()
    for name, parameter in objective.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
    trained = {id(p) for group in objective.parameter_groups() for p in group.parameters}
    assert trained == {id(p) for p in objective.parameters() if p.requires_grad}


def test_a_masked_patch_does_not_reach_the_student_through_an_overlapping_stem():
    backbone = backbone_config(stem="conv")
    config = dino_config()
    objective, batch = make(config, backbone), batch_of(config, backbone)
    assert batch.hidden.any()
    images = objective.pixel_scale(batch.images)
    grid = batch.hidden.view(-1, 1, SIDE, SIDE)
    hidden = grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    spoiled = torch.where(hidden, torch.full_like(images, 3.0), images)
    see = [objective.student(x, batch.hidden, objective.mask_token) for x in (images, spoiled)]
    torch.testing.assert_close(see[0].cls, see[1].cls)


def test_schedules_at_steps_worked_out_by_hand():
    objective = make(dino_config(momentum=0.99, final_momentum=1.0))
    assert objective.teacher_temperature(0) == pytest.approx(0.04)
    assert objective.teacher_temperature(10) == pytest.approx(0.05)
    assert objective.teacher_temperature(30) == objective.teacher_temperature(99) == 0.07
    assert objective.teacher_momentum(0) == pytest.approx(0.99)
    assert objective.teacher_momentum(50) == pytest.approx(0.995)
    assert objective.teacher_momentum(100) == pytest.approx(1.0)
    before = objective.teacher.module.head.prototypes.weight.clone()
    objective.after_step(50)
    expected = before.lerp(objective.student.head.prototypes.weight, 0.005)
    torch.testing.assert_close(objective.teacher.module.head.prototypes.weight, expected)


def test_deeper_layers_learn_faster_and_prototypes_later():
    objective = make(dino_config(layer_decay=0.5, patch_embed_lr_scale=0.1, freeze_prototypes=0.07))
    names = {id(p): name for name, p in objective.named_parameters()}
    rates = {}
    for group in objective.parameter_groups():
        for parameter in group.parameters:
            rates[names[id(parameter)]] = group
    own = "student.backbone."
    # Depth 2: the final norm is layer 3, blocks are 2 and 1, the stem and its tokens 0.
    assert rates[own + "norm.weight"].learning_rate_scale == 1
    assert rates[own + "blocks.1.mlp.fc1.weight"].learning_rate_scale == 0.5
    assert rates[own + "blocks.0.mlp.fc1.weight"].learning_rate_scale == 0.25
    assert rates[own + "cls_token"].learning_rate_scale == 0.125
    assert rates[own + "patch_embed.proj.weight"].learning_rate_scale == pytest.approx(0.0125)
    assert rates["student.head.layers.0.weight"].learning_rate_scale == 1
    assert rates["student.head.prototypes.weight"].frozen_steps == 7
    assert rates["student.head.layers.0.weight"].frozen_steps == 0
    assert rates[own + "blocks.0.mlp.fc1.weight"].weight_decay_scale == 1
    assert rates[own + "blocks.0.mlp.fc1.bias"].weight_decay_scale == 0
    assert rates["mask_token"].weight_decay_scale == 0
    assert rates["mask_token"].learning_rate_scale == 0.125


@pytest.mark.parametrize(("released", "first", "second"), [(False, 1.0, 0.1), (True, 0.0, 0.9)])
def test_each_view_is_blurred_and_solarized_as_often_as_the_paper_or_its_code_has_it(
    released: bool, first: float, second: float
):
    views = DinoViews(dino_config(released_blur=released), backbone_config())
    rng = np.random.Generator(np.random.Philox(3))
    drawn = np.stack([views.draw(48, 40, rng).color_jitter for _ in range(800)])
    blurred, solarized = (drawn[..., 5] > 0).mean(axis=0), drawn[..., 6].mean(axis=0)
    np.testing.assert_allclose(blurred, [first, second, 0.5, 0.5], atol=0.05)
    np.testing.assert_allclose(solarized, [0.0, 0.2, 0.0, 0.0], atol=0.04)


def test_views_are_collated_view_by_view_and_masks_weigh_each_view_alike():
    config = dino_config()
    batch = batch_of(config)
    assert batch.images.shape == (2 * IMAGES, 3, SIZE, SIZE)
    assert batch.local.shape == (2 * IMAGES, 3, 16, 16)
    assert batch.color_jitter.shape == (4 * IMAGES, 7)
    counted = batch.weights > 0
    flat = batch.hidden.flatten()
    assert batch.masked[counted].tolist() == flat.nonzero().flatten().tolist()
    assert len(batch.masked) % 6 == 0  # an eighth of the maximum, 2 × 3 × 16 / 2
    views = batch.masked[counted] // (SIDE * SIDE)
    for view in range(2 * IMAGES):
        weight = batch.weights[counted][views == view].sum().item()
        assert weight == pytest.approx(1 / (2 * IMAGES) if batch.hidden[view].any() else 0.0)


def test_masks_have_the_configured_probability_and_counts():
    backbone = backbone_config(image_size=64)  # 8 × 8 patches
    views = DinoViews(dino_config(mask_probability=0.5), backbone)
    rng = np.random.Generator(np.random.Philox(2))
    counts = np.array([views._draw_hidden(rng).sum() for _ in range(2000)])
    assert (counts > 0).mean() == pytest.approx(0.5, abs=0.04)
    ratios = counts[counts > 0] / 64
    assert ratios.min() == pytest.approx(0.1, abs=0.01)
    assert ratios.max() == pytest.approx(0.5, abs=0.01)
    assert ratios.mean() == pytest.approx(0.3, abs=0.01)


def test_without_patch_loss_nothing_is_masked():
    config = dino_config(ibot_weight=0.0)
    batch = batch_of(config)
    assert not batch.hidden.any()
    assert len(batch.masked) == 0
    assert not hasattr(make(config), "mask_token")


def test_without_local_views_there_are_the_two_global_ones():
    config = dino_config(local_crops=0)
    batch = batch_of(config)
    assert len(batch.local) == 0
    assert math.isfinite(make(config)(batch, step=0).loss.item())


def test_entropy_and_divergence_distinguish_the_kinds_of_collapse():
    def of(targets: Tensor) -> tuple[float, float]:
        found = _describe(targets)
        return found["teacher_entropy"].item(), found["kl_to_uniform"].item()

    most = math.log(8)
    assert of(torch.eye(8)) == pytest.approx((0, 0), abs=1e-6)  # certain, all different
    assert of(torch.eye(8)[[3] * 8]) == pytest.approx((0, most))  # certain, all the same
    assert of(torch.full((8, 8), 1 / 8)) == pytest.approx((most, 0), abs=1e-6)  # uniform


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("backbone.patch_size=14", "set objective.local_size=84 or 98"),
        ("objective.local_size=5", "set objective.local_size=16"),
        ("objective.mask_probability=0", "objective.ibot_weight=0"),
        ("objective.max_mask_ratio=0.001", "objective.ibot_weight=0"),
    ],
)
def test_impossible_views_and_masks_are_refused_before_the_start(word: str, message: str):
    more = ["objective.min_mask_ratio=0"] if "max_mask" in word else []
    with pytest.raises(UserError) as refused:
        read_config("dinov2_vitl16", [word, *more], is_smoke=False)
    assert message in f"{refused.value.problem} {refused.value.remedy}"
