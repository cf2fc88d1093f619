"""Any network can be a backbone: two convolutions train with DINO, and MAE rejects them."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Sample
from ssl_vit.models.backbone import Backbone, Features
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import BackboneConfig, Hides, VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import DinoConfig, MaeConfig, MaskFeatConfig, SimMimConfig


class TwoConvolutionsConfig(BackboneConfig):
    name: Literal["two_convolutions"] = "two_convolutions"
    width: int = 16
    image_size: int | tuple[int, int] = 32

    @property
    def stride(self) -> int:
        return 8

    @property
    def hides(self) -> Hides:
        return "no"

    def shrunk(self) -> dict[str, Any]:
        return {}


class TwoConvolutions(Backbone):
    def __init__(self, config: TwoConvolutionsConfig) -> None:
        super().__init__(config)
        self.first = nn.Conv2d(3, config.width, 4, stride=4)
        self.second = nn.Conv2d(config.width, config.width, 2, stride=2)

    def forward(self, images: Tensor) -> Features:
        maps = self.second(self.first(images).relu())
        patches = maps.flatten(2).transpose(1, 2)
        return Features(patches.mean(dim=1), patches[:, :0], patches, self.grid_of(images))

    def layer_of(self, parameter_name: str) -> int:
        return 1 if parameter_name.startswith("second") else 0

    def units(self) -> list[nn.Module]:
        return [self.first, self.second]


DINO = DinoConfig(
    ibot_weight=0.0,
    prototypes=16,
    bottleneck=8,
    head_hidden=16,
    local_crops=2,
    local_size=16,
    koleo_weight=0.0,
    # A teacher far enough from its student for the loss to decrease.
    momentum=0.99,
)


def test_two_convolutions_train_with_dino() -> None:
    torch.manual_seed(0)
    config = TwoConvolutionsConfig()
    objective = build_objective(DINO, TwoConvolutions(config), DataConfig(), total_steps=60)
    views, rng = build_views(DINO, config), np.random.default_rng(0)
    draws = [views.draw(48, 40, rng) for _ in range(8)]
    crops = [
        torch.from_numpy(rng.integers(0, 256, (count, 8, 3, *size), dtype=np.uint8))
        for count, size in views.crop_sizes
    ]
    batch = views.collate(crops, draws, [Sample(number, -1) for number in range(8)])
    parameters = [p for group in objective.parameter_groups() for p in group.parameters]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(60):
        loss = objective(batch, step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not any(torch.equal(was, now) for was, now in zip(before, parameters, strict=True))
    exported = objective.exported()["backbone"]
    assert isinstance(exported, TwoConvolutions)
    # No attention, because there is no class token.
    assert set(objective.panels(batch)) == {"views", "patch_features"}


@pytest.mark.parametrize(
    ("objective", "verb"),
    [
        (MaeConfig(), "leave out hidden patches"),
        (SimMimConfig(), "put a token in place of hidden patches"),
        (MaskFeatConfig(), "put a token in place of hidden patches"),
        (DinoConfig(local_size=16), "put a token in place of hidden patches"),
    ],
    ids=["mae", "simmim", "maskfeat", "ibot"],
)
def test_an_objective_that_hides_patches_names_the_backbones_that_can(objective: Any, verb: str):
    with pytest.raises(ValueError, match=verb) as caught:
        build_objective(objective, TwoConvolutions(TwoConvolutionsConfig()), DataConfig(), 1)
    assert "choose backbone.name=vit" in str(caught.value)


def test_features_tell_their_grid() -> None:
    config = VitConfig(width=16, depth=1, heads=2, patch_size=4, image_size=(8, 16))
    assert (config.grid, config.num_patches) == ((2, 4), 8)
    backbone: Any = build_backbone(config)
    images = torch.rand(3, 3, 12, 8)
    assert backbone(images).grid == (3, 2)
    assert backbone.encode(backbone.embed(images)[:, [0, 4]]).grid == (1, 2)
    with pytest.raises(ValueError, match="10×8 pixels are not a whole number of 4-pixel patches"):
        backbone(torch.rand(1, 3, 10, 8))
