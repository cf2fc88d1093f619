"""SimMIM's loss against a loop over pixels, its masks, and its requirements on a backbone."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.data.config import DataConfig
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import SimMimConfig
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.objectives.simmim.objective import SimMim

BACKBONE = VitConfig(width=32, depth=1, heads=2, patch_size=4, image_size=(16, 24))
CONFIG = SimMimConfig(mask_unit=8)


def build() -> SimMim:
    torch.manual_seed(0)
    objective = build_objective(CONFIG, build_backbone(BACKBONE), DataConfig(), 1)
    assert isinstance(objective, SimMim)
    return objective


def batch_of(count: int) -> MaskedBatch:
    views, rng = build_views(CONFIG, BACKBONE), np.random.default_rng(0)
    hidden = np.stack([views.draw(40, 50, rng).hidden for _ in range(count)])
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, 16, 24), dtype=np.uint8))
    return MaskedBatch(images, torch.from_numpy(hidden), torch.arange(count))


def test_whole_squares_are_hidden_an_exact_number_of_them() -> None:
    hidden = batch_of(50).hidden.view(50, 4, 6)
    squares = hidden.view(50, 2, 2, 3, 2).transpose(2, 3).reshape(50, 6, 4)
    assert torch.equal(squares.all(dim=2), squares.any(dim=2))
    assert set(squares.all(dim=2).sum(dim=1).tolist()) == {math.ceil(0.6 * 6)}
    assert len({tuple(row.tolist()) for row in squares.all(dim=2)}) > 10  # of 15


def test_the_loss_is_the_mean_distance_of_the_hidden_pixels() -> None:
    """In float64, pixel by pixel, from the network's own predictions (equation of section 3.4)."""
    objective, batch = build(), batch_of(3)
    images = objective.pixel_scale(batch.images)
    patches = objective.backbone(images, batch.hidden, objective.mask_token).patches
    predicted = objective.predict(patches).double().view(3, 4, 6, 4, 4, 3)
    distances = []
    for image in range(3):
        for row in range(16):
            for column in range(24):
                if batch.hidden[image].view(4, 6)[row // 4, column // 4]:
                    there = predicted[image, row // 4, column // 4, row % 4, column % 4]
                    distances.append((there - images[image, :, row, column].double()).abs())
    expected = torch.stack(distances).mean()
    torch.testing.assert_close(objective(batch, 0).loss.double(), expected, rtol=1e-6, atol=0)


def test_hidden_pixels_reach_no_prediction() -> None:
    objective, batch = build(), batch_of(4)
    hidden = batch.hidden.view(4, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    spoiled = batch.images.masked_fill(hidden, 255)
    made = [
        objective.backbone(objective.pixel_scale(images), batch.hidden, objective.mask_token)
        for images in (batch.images, spoiled)
    ]
    assert torch.equal(made[0].patches, made[1].patches)


def test_the_panel_keeps_what_was_visible() -> None:
    objective, batch = build().eval(), batch_of(2)
    picture = objective.panels(batch)["reconstruction"]
    # Frames of two pixels around tiles of 16 × 24, three in a row.
    original, rebuilt = picture[:, 2:18, 2:26], picture[:, 2:18, 58:82]
    hidden = batch.hidden[0].view(4, 6).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(original[:, ~hidden], rebuilt[:, ~hidden])
    assert not torch.equal(original[:, hidden], rebuilt[:, hidden])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mask_unit": 6}, "must be a multiple of backbone.patch_size=4"),
        ({"mask_unit": 12}, "divide backbone.image_size"),
        ({"mask_unit": 8, "mask_ratio": 0.99}, "leave nothing visible"),
    ],
)
def test_squares_that_do_not_fit_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SimMimConfig(**settings).check(BACKBONE)
