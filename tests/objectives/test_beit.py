"""BEiT's loss against a loop, what must not reach it, its masks, and its baselines."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Sample
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.beit.objective import Beit, Unigram
from ssl_vit.objectives.beit.views import BeitBatch
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.color_jitter import apply_color_factors
from ssl_vit.objectives.config import BeitConfig
from ssl_vit.objectives.given import Codes, GivenNetwork
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.tokenizer.network import build_tokenizer
from ssl_vit.recipes import find_recipe

BACKBONE = VitConfig(
    width=32, depth=3, heads=2, patch_size=4, image_size=(16, 24), position="relative"
)
GIVEN = GivenNetwork(
    sha256="0",
    backbone=VitConfig(width=48, depth=1, heads=3, patch_size=8, image_size=32),
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.2, 0.3, 0.4),
    codes=Codes(num=20, dim=6, is_projected=True),
)


def build(backbone: VitConfig = BACKBONE, **settings: Any) -> Beit:
    torch.manual_seed(0)
    config = BeitConfig(tokenizer_info=GIVEN, min_block_patches=2, **settings)
    objective = build_objective(config, build_backbone(backbone), DataConfig(), 10)
    assert isinstance(objective, Beit)
    torch.nn.init.normal_(objective.predict.weight, std=0.5)  # logits that differ
    return objective


def batch_of(count: int, objective: Beit) -> BeitBatch:
    views, rng = build_views(objective.config, objective.backbone.config), np.random.default_rng(0)
    draws = [views.draw(40, 50, rng) for _ in range(count)]
    crops = [
        torch.from_numpy(rng.integers(0, 256, (1, count, 3, *size), dtype=np.uint8))
        for _, size in views.crop_sizes
    ]
    return views.collate(crops, draws, [Sample(number, -1) for number in range(count)])


def tokens_of(objective: Beit, batch: BeitBatch) -> Tensor:
    """The tokens, by the tokenizer alone."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (GIVEN.pixel_mean, GIVEN.pixel_std))
    images = (apply_color_factors(batch.given_images, batch.jitter) / 255 - mean) / std
    network = build_tokenizer(GIVEN).eval()
    network.load_state_dict(objective.frozen()[0].network.state_dict())
    return network(images)


@pytest.mark.parametrize("aggregate_after", [0, 2])
def test_the_loss_is_the_cross_entropy_of_the_hidden_tokens(aggregate_after: int) -> None:
    """In float64, token by token; with aggregation, the sum of both predictions'."""
    objective = build(aggregate_after=aggregate_after)
    batch = batch_of(3, objective)
    tokens = tokens_of(objective, batch)
    images = objective.pixel_scale(apply_color_factors(batch.images, batch.jitter))
    backbone, filler = objective.backbone, objective.mask_token
    found = [backbone(images, batch.hidden, filler).patches]
    if objective.aggregation is not None:
        embedded = backbone.embed(images, batch.hidden, filler)
        _, (inner, last) = backbone.encode_with_inner(embedded, (2, 3), (4, 6))
        both = torch.cat([last[:, :1], inner[:, 1:]], dim=1)
        for block in objective.aggregation.blocks:
            both = block(both, backbone.attention_bias((4, 6)))
        found.append(backbone.get_submodule("norm")(both)[:, 1:])
    expected = 0.0
    for patches in found:
        logits = objective.predict(patches).double().detach()
        entropies = [
            float(
                logits[image, patch].logsumexp(dim=0) - logits[image, patch, tokens[image, patch]]
            )
            for image in range(3)
            for patch in range(24)
            if batch.hidden[image, patch]
        ]
        assert len(entropies) == 3 * 9
        expected += sum(entropies) / len(entropies)
    output = objective(batch, 0)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert ("aggregated_loss" in output.metrics) == bool(aggregate_after)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_hidden_pixels_reach_no_prediction(stem: str) -> None:
    objective = build(BACKBONE.model_copy(update={"stem": stem}), aggregate_after=2)
    batch = batch_of(4, objective)
    hidden = batch.hidden.view(4, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    spoiled = batch.images.masked_fill(hidden, 255)
    _, places = visible_and_hidden(batch.hidden, objective.num_hidden)
    made = [
        objective._predict(objective.pixel_scale(images), batch.hidden, places)
        for images in (batch.images, spoiled)
    ]
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][2] is not None
    assert made[1][2] is not None
    assert torch.equal(made[0][2], made[1][2])


def test_tokens_of_visible_patches_do_not_enter_the_loss() -> None:
    objective = build()
    batch = batch_of(3, objective)
    before = objective(batch, 0).loss
    network = objective.frozen()[0].network
    tokens = network(torch.zeros_like(batch.given_images, dtype=torch.float32))
    network.forward = lambda _: torch.where(batch.hidden, tokens_of(objective, batch), tokens)
    assert torch.equal(objective(batch, 0).loss, before)


def test_masks_are_blocks_of_the_published_number() -> None:
    recipe = find_recipe("beit_vitb16")
    config = recipe.objective.model_copy(update={"tokenizer_info": None})
    views, rng = build_views(config, recipe.backbone), np.random.default_rng(0)
    masks = np.stack([views.draw(300, 400, rng).hidden for _ in range(200)])
    assert set(masks.sum(axis=1)) == {75}
    grids = masks.reshape(-1, 14, 14)
    same = (grids[:, 1:] == grids[:, :-1]).mean()
    single = 75 / 196
    assert same > single**2 + (1 - single) ** 2 + 0.2  # neighbors are hidden together


def test_unigram_baselines_are_those_of_earlier_steps() -> None:
    unigram = Unigram(4)
    first, second = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 3], [1, 0]])
    start = unigram(first, 0)
    assert float(start["unigram_loss"]) == pytest.approx(math.log(4))
    unigram.add_counts()
    found = unigram(second, 1)
    shares = {0: 2 / 8, 1: 4 / 8, 2: 1 / 8, 3: 1 / 8}  # counts 1, 3, 0, 0, and one each
    expected = -sum(math.log(shares[token]) for token in (1, 3, 1, 0)) / 4
    assert float(found["unigram_loss"]) == pytest.approx(expected)
    assert float(found["unigram_accuracy"]) == 0.5
    unigram.add_counts()
    assert unigram.counts.tolist() == pytest.approx([0.99 + 1, 0.99 * 3 + 2, 0, 1])


def test_both_networks_see_the_same_crop_in_the_same_colors() -> None:
    objective = build(color_jitter=0.4)
    views = build_views(objective.config, BACKBONE)
    draw = views.draw(100, 100, np.random.default_rng(5))
    own, given = draw.crops
    assert own.box == given.box
    assert (own.size, given.size) == ((16, 24), (32, 48))
    assert (abs(draw.jitter - 1) <= 0.4).all()
    assert len(set(draw.jitter)) == 3
    still = build_views(objective.config.model_copy(update={"color_jitter": 0.0}), BACKBONE)
    assert still.draw(100, 100, np.random.default_rng(5)).jitter.tolist() == [1, 1, 1]


def test_the_tokenizer_is_neither_trained_nor_saved() -> None:
    objective = build()
    assert not any("tokenizer" in name for name in objective.state_dict())
    assert not any("tokenizer" in name for name, _ in objective.named_parameters())
    objective(batch_of(2, objective), 0).loss.backward()
    assert all(each.grad is None for each in objective.frozen()[0].modules.parameters())


def test_the_panel_shows_true_and_predicted_tokens() -> None:
    objective = build().eval()
    assert objective.panels(batch_of(3, objective))["tokens"].shape == (3, 3 * 20, 4 * 28)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aggregate_after": 3}, "aggregate_after=3 is not below backbone.depth=3"),
        ({"min_block_patches": 10}, "is more than the 9 of 24 patches"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], said: str) -> None:
    config = BeitConfig(min_block_patches=2).model_copy(update=settings)
    with pytest.raises(ValueError, match=said):
        config.check(BACKBONE)
