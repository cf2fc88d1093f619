"""MaskFeat's loss against a loop over patches, its masks, and its requirements on a backbone."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ssl_vit.data.config import DataConfig
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import MaskFeatConfig
from ssl_vit.objectives.hog import hog
from ssl_vit.objectives.maskfeat.objective import MaskFeat
from ssl_vit.objectives.one_crop.views import MaskedBatch
from tests.objectives.test_hog import by_hand

BACKBONE = VitConfig(width=32, depth=1, heads=2, patch_size=4, image_size=(16, 24))
CONFIG = MaskFeatConfig(min_block_patches=3)
HIDDEN = 9  # of 24, which is 0.4 × 24 = 9.6 rounded down


def build(stem: Literal["patch", "conv"] = "patch") -> MaskFeat:
    torch.manual_seed(0)
    backbone = BACKBONE.model_copy(update={"stem": stem})
    objective = build_objective(CONFIG, build_backbone(backbone), DataConfig(), 1)
    assert isinstance(objective, MaskFeat)
    return objective


def batch_of(count: int) -> MaskedBatch:
    views, rng = build_views(CONFIG, BACKBONE), np.random.default_rng(0)
    hidden = np.stack([views.draw(40, 50, rng).hidden for _ in range(count)])
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, 16, 24), dtype=np.uint8))
    return MaskedBatch(images, torch.from_numpy(hidden), torch.arange(count))


def pixels_of(hidden: torch.Tensor) -> torch.Tensor:
    """(B, 1, 16, 24) bool, true on the pixels of hidden patches."""
    return hidden.view(-1, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_an_exact_number_of_patches_is_hidden_in_blocks():
    hidden = batch_of(200).hidden
    assert set(hidden.sum(dim=1).tolist()) == {HIDDEN}
    grid = hidden.view(200, 4, 6)
    pairs = (grid[:, 1:] & grid[:, :-1]).sum() + (grid[:, :, 1:] & grid[:, :, :-1]).sum()
    # Of 38 pairs of neighbors, single patches drawn one by one would hide both of 9/24 × 8/23.
    assert pairs / 200 > 1.3 * 38 * 9 / 24 * 8 / 23


@pytest.mark.parametrize(
    ("sizes", "ratio", "count"),
    [
        ({}, 0.4, 78),  # mmpretrain's configuration
        ({"image_size": 96, "patch_size": 12}, 0.4, 25),
        ({"image_size": 160}, 0.29, 29),  # 100 × 0.29 is 28.999…96 in binary
        ({"image_size": 64}, 0.01, 1),
        ({"image_size": 64}, 0.99, 15),
    ],
)
def test_the_number_of_hidden_patches(sizes: dict[str, Any], ratio: float, count: int):
    config, backbone = MaskFeatConfig(mask_ratio=ratio, min_block_patches=1), VitConfig(**sizes)
    assert config.num_hidden(backbone) == count
    views, rng = build_views(config, backbone), np.random.default_rng(0)
    assert {views.draw(300, 300, rng).hidden.sum() for _ in range(50)} == {count}


def test_the_loss_is_the_mean_squared_error_of_the_hidden_patches():
    """In float64, patch by patch and cell by cell, from the network's own predictions."""
    objective, batch = build(), batch_of(2)
    images = objective.pixel_scale(batch.images)
    patches = objective.backbone(images, batch.hidden, objective.mask_token).patches
    predicted = objective.predict(patches).double().detach().view(2, 4, 6, 2, 2, 3, 9).numpy()
    errors = []
    for image in range(2):
        for channel in range(3):
            # Of the pixels as they came: normalization drops out.
            cells = by_hand(batch.images[image, channel].double().numpy(), 2)
            for row in range(8):
                for column in range(12):
                    if batch.hidden[image].view(4, 6)[row // 2, column // 2]:
                        said = predicted[image, row // 2, column // 2, row % 2, column % 2, channel]
                        errors += list((said - cells[row, column]) ** 2)
    assert len(errors) == 2 * HIDDEN * 2 * 2 * 3 * 9
    assert objective(batch, 0).loss.item() == pytest.approx(math.fsum(errors) / len(errors), 1e-5)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_hidden_pixels_reach_no_prediction(stem: Literal["patch", "conv"]):
    objective, batch = build(stem), batch_of(4)
    spoiled = batch.images.masked_fill(pixels_of(batch.hidden), 255)
    made: list[torch.Tensor] = []
    objective.predict.register_forward_hook(lambda _, __, found: made.append(found))
    losses = [objective(batch._replace(images=each), 0).loss for each in (batch.images, spoiled)]
    assert torch.equal(made[0], made[1])
    assert losses[0] != losses[1]  # because the targets differ


def test_the_target_of_a_visible_patch_does_not_enter_the_loss():
    """The loss without an encoder that sees the images: only the targets can tell them apart."""
    objective, batch = build(), batch_of(4)
    with torch.no_grad():
        objective.predict.weight.zero_()
        objective.predict.bias.normal_()
    # Pixels at least two from any hidden patch: a gradient reaches one pixel beyond its patch.
    near = torch.nn.functional.max_pool2d(pixels_of(batch.hidden).float(), 3, 1, 1) > 0
    far = batch.images.masked_fill(~near, 255)
    assert not torch.equal(far, batch.images)
    assert objective(batch._replace(images=far), 0).loss == objective(batch, 0).loss
    spoiled = batch.images.masked_fill(pixels_of(batch.hidden), 255)
    assert objective(batch._replace(images=spoiled), 0).loss != objective(batch, 0).loss


def test_predictions_of_visible_patches_get_no_gradient():
    objective, batch = build(), batch_of(3)
    seen: list[torch.Tensor] = []
    objective.predict.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    objective(batch, 0).loss.backward()
    assert [tuple(each.shape) for each in seen] == [(3, HIDDEN, 32)]


def test_the_loss_is_float32_under_autocast():
    objective, batch = build(), batch_of(3)
    full = objective(batch, 0).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, 0).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full.item(), rel=0.02)


def test_the_mask_token_has_no_weight_decay():
    objective = build()
    plain = next(group for group in objective.parameter_groups() if group.name == "plain")
    assert plain.weight_decay_scale == 0
    assert any(each is objective.mask_token for each in plain.parameters)


def test_the_panel_differs_where_patches_are_hidden():
    objective, batch = build().eval(), batch_of(2)
    panels = objective.panels(batch)
    assert set(panels) == {"hog", "patch_features", "attention"}
    # Frames of two pixels around pictures of twice the image's size, four in a row.
    assert panels["hog"].shape == (3, 2 * 36, 4 * 52)
    truth, predicted = panels["hog"][:, 2:34, 106:154], panels["hog"][:, 2:34, 158:206]
    hidden = batch.hidden[0].view(4, 6).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(truth[:, ~hidden], predicted[:, ~hidden])
    assert not torch.equal(truth[:, hidden], predicted[:, hidden])
    red, _, blue = truth.float()
    assert (red[hidden] > 2 * blue[hidden])[red[hidden] > 20].all()  # orange
    assert (red[~hidden] == blue[~hidden]).all()  # gray


def test_twenty_steps_learn_something():
    objective, batch = build(), batch_of(8)
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    losses = []
    for step in range(20):
        loss = objective(batch, step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    targets = hog(objective.pixel_scale(batch.images), 4)
    assert losses[0] == pytest.approx(targets.square().mean().item(), rel=0.2)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("settings", "backbone", "problem"),
    [
        ({}, {"patch_size": 7}, "backbone.patch_size=7 is odd.*; choose an even one"),
        (
            {"min_block_patches": 79},
            {},
            "is more than the 78 of 196 patches that objective.mask_ratio=0.4 hides.*; lower",
        ),
        ({}, {"image_size": 16}, "is one patch, of which nothing can be hidden"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], backbone: dict[str, Any], problem: str
):
    with pytest.raises(ValueError, match=problem):
        MaskFeatConfig(**settings).check(VitConfig(**backbone))
