"""Color jitter and blur against torchvision's functions, and drawn parameters against settings."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.objectives.color_jitter import (
    NUM_COLUMNS,
    ColorJitter,
    apply_color_jitter,
    draw_color_jitter,
)

define_missing_ops()
from torchvision.transforms.v2 import functional as tv  # noqa: E402

ALL = ColorJitter(0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, 0.2)


def images(count: int = 4, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def rows(count: int = 4, **columns: float) -> Tensor:
    names = ("brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize")
    plain = dict.fromkeys(names, 0.0) | dict.fromkeys(names[:3], 1.0)
    return torch.tensor([[(plain | columns)[name] for name in names]] * count)


@pytest.mark.parametrize(
    ("columns", "oracle"),
    [
        ({}, lambda x: x),
        ({"brightness": 1.4}, lambda x: tv.adjust_brightness(x, 1.4)),
        ({"contrast": 0.6}, lambda x: tv.adjust_contrast(x, 0.6)),
        ({"saturation": 1.2}, lambda x: tv.adjust_saturation(x, 1.2)),
        ({"hue": 0.1}, lambda x: tv.adjust_hue(x, 0.1)),
        ({"hue": -0.1}, lambda x: tv.adjust_hue(x, -0.1)),
        ({"gray": 1.0}, lambda x: tv.rgb_to_grayscale(x, 3)),
        ({"blur": 1.3}, lambda x: tv.gaussian_blur(x, [9, 9], [1.3, 1.3])),
        ({"solarize": 1.0}, lambda x: tv.solarize(x, 0.5)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_change_is_torchvisions(columns: dict[str, float], oracle):
    made = apply_color_jitter(images(), rows(**columns))
    expected = torch.stack([oracle(image) for image in images().float() / 255])
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=0)
    assert made.min() >= 0
    assert made.max() <= 1


def test_images_of_a_batch_do_not_touch_each_other():
    generator = np.random.Generator(np.random.Philox(7))
    each = torch.from_numpy(np.stack([draw_color_jitter(ALL, generator) for _ in range(4)]))
    together = apply_color_jitter(images(), each)
    for place in range(4):
        alone = apply_color_jitter(images()[place : place + 1], each[place : place + 1])
        torch.testing.assert_close(together[place], alone[0], atol=1e-6, rtol=0)


def test_autocast_rounds_no_colors():
    generator = np.random.Generator(np.random.Philox(7))
    each = torch.from_numpy(np.stack([draw_color_jitter(ALL, generator) for _ in range(4)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = apply_color_jitter(images(), each)
    torch.testing.assert_close(made, apply_color_jitter(images(), each), rtol=0, atol=0)


def test_drawn_parameters_have_the_configured_probabilities_and_ranges():
    rng = np.random.Generator(np.random.Philox(3))
    drawn = np.stack([draw_color_jitter(ALL, rng) for _ in range(4000)])
    assert drawn.shape == (4000, NUM_COLUMNS)
    changed = drawn[:, 0] != 1
    assert changed.mean() == pytest.approx(0.8, abs=0.03)
    assert drawn[changed, 0].min() >= 0.6
    assert drawn[changed, 0].max() <= 1.4
    assert abs(drawn[:, 3]).max() <= 0.1
    assert drawn[:, 4].mean() == pytest.approx(0.2, abs=0.03)
    assert (drawn[:, 5] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[drawn[:, 5] > 0, 5].min() >= 0.1
    assert drawn[:, 5].max() <= 2.0
    assert drawn[:, 6].mean() == pytest.approx(0.2, abs=0.03)


def test_a_draw_takes_the_same_randomness_with_any_settings():
    nothing = ColorJitter(*[0.0] * 8)
    first, second = (np.random.Generator(np.random.Philox(1)) for _ in range(2))
    assert draw_color_jitter(nothing, first).tolist() == [1, 1, 1, 0, 0, 0, 0]
    draw_color_jitter(ALL, second)
    assert first.random() == second.random()
