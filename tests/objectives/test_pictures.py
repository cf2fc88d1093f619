"""Pictures of features: similar patches have similar colors; attention is from the last block."""

import numpy as np
import pytest
import torch

from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.pictures import FRAME, feature_panels, principal_colors, rows_of
from ssl_vit.objectives.pixels import PixelScale
from tests.objectives.test_dino import IMAGES, SIZE, batch_of, dino_config, make

SCALE = PixelScale((0.5,) * 3, (0.25,) * 3)


def backbone(registers: int = 0) -> VisionTransformer:
    torch.manual_seed(0)
    config = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=32, registers=registers)
    return VisionTransformer(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
def test_class_attention_is_the_softmax_of_the_last_blocks_scores(registers: int):
    model, images = backbone(registers), torch.randn(2, 3, 32, 32)
    seen = {}
    model.blocks[1].attn.register_forward_hook(lambda _, given, __: seen.update(x=given[0]))
    model(images)
    attention = model.blocks[1].attn
    rows = seen["x"].double().numpy() @ attention.qkv.weight.double().numpy().T
    rows = rows + attention.qkv.bias.double().numpy()
    found = model.class_attention(images).numpy()
    assert found.shape == (2, 3, 16)
    for image in range(2):
        for head in range(3):
            query = rows[image, 0, 8 * head : 8 * head + 8]
            keys = rows[image, :, 24 + 8 * head : 24 + 8 * head + 8]
            powers = np.exp(keys @ query / np.sqrt(8))
            expected = (powers / powers.sum())[1 + registers :]
            np.testing.assert_allclose(found[image, head], expected, rtol=1e-4)


def test_patches_that_are_alike_have_one_color():
    torch.manual_seed(0)
    kinds = torch.randn(2, 24)
    which = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]])
    colors = principal_colors(kinds[which] + 1e-3 * torch.randn(2, 4, 24))
    assert colors.shape == (2, 4, 3)
    assert (colors >= 0).all()
    assert (colors <= 1).all()
    first = colors[..., 0]  # the direction between the two kinds
    torch.testing.assert_close(first[which == 0], first[0, 0].expand(4), atol=0.02, rtol=0)
    assert (first[which == 1] - first[0, 0]).abs().min() > 0.9


def test_features_that_are_all_the_same_make_a_picture_too():
    assert torch.isfinite(principal_colors(torch.ones(2, 4, 24))).all()


def test_rows_of_columns_of_two_sizes():
    large = torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)
    small = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    picture = rows_of([large, small])
    side = 8 + 2 * FRAME
    assert picture.shape == (3, 2 * side, 2 * side)
    assert picture[:, :FRAME].eq(255).all()
    assert picture[:, FRAME : FRAME + 8, side + FRAME : -FRAME].eq(7).all()


@torch.no_grad()
def test_panels_of_a_backbone_have_a_column_for_every_head():
    panels = feature_panels(backbone(), SCALE, torch.randn(2, 3, 32, 32))
    side = 32 + 2 * FRAME
    assert panels["patch_features"].shape == (3, 2 * side, 2 * side)
    assert panels["attention"].shape == (3, 2 * side, 4 * side)
    assert {picture.dtype for picture in panels.values()} == {torch.uint8}


def test_the_views_are_shown_as_the_student_saw_them():
    config = dino_config(mask_probability=1.0, min_mask_ratio=0.5)
    objective, batch = make(config), batch_of(config)
    objective.eval()
    picture = objective.panels(batch)["views"]
    side = SIZE + 2 * FRAME
    assert picture.shape == (3, IMAGES * side, 4 * side)  # two global views, two local ones
    # A hidden patch is the mean of normalized pixels, gray here.
    place = int(batch.hidden[0].nonzero()[0])
    top, left = (FRAME + 8 * (place // 4)), (FRAME + 8 * (place % 4))
    assert picture[:, top : top + 8, left : left + 8].float().std() < 1


def test_features_that_overflow_make_a_picture_too():
    patches = torch.randn(2, 40, 24)
    patches[0, 3, 5] = torch.inf
    patches[1, 2, 7] = torch.nan
    with torch.autocast("cpu", dtype=torch.float16):  # whose largest number is 65,504
        colors = principal_colors(100 * patches)
    assert torch.isfinite(colors).all()
    assert len(colors.unique()) > 100
