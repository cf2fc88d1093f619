"""Drawing and making crops, against torch's own resize in floating point and brute force."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.data.crops import Box, Crop, random_resized_crop_box
from ssl_vit.data.decode import Picture
from ssl_vit.data.render import render, resize_into
from tests.pictures import center_crop, encode, photograph


@pytest.fixture
def pixels() -> np.ndarray:
    """(48, 64, 3) uint8."""
    return photograph(48, 64)


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> Tensor:
    """(3, size, size) uint8."""
    target = torch.empty(size, size, 3, dtype=torch.uint8)
    resize_into(pixels, box, target)
    return target.permute(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 2), (31, 400), (224, 224), (480, 640)]
)
def test_a_random_crop_always_lies_inside_the_image(height: int, width: int):
    rng = np.random.default_rng(0)
    for area in [(0.2, 1.0), (0.9, 1.0), (1e-6, 1e-5)]:
        for _ in range(300):
            box = random_resized_crop_box(height, width, area, (3 / 4, 4 / 3), rng)
            assert box.height >= 1
            assert box.width >= 1
            assert box.top >= 0
            assert box.left >= 0
            assert box.top + box.height <= height
            assert box.left + box.width <= width


def test_random_crops_have_the_area_and_aspect_asked_for_and_reach_every_corner():
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop_box(400, 400, (0.2, 0.8), (0.5, 2.0), rng) for _ in range(3000)]
    shares = np.array([box.height * box.width / 160_000 for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.195 < shares.min() < 0.22
    assert 0.7 < shares.max() < 0.805
    assert 0.49 < ratios.min() < 0.55
    assert 1.8 < ratios.max() < 2.04
    assert abs(np.log(ratios).mean()) < 0.03  # as often wide as tall
    corner = {(box.top == 0, box.left == 0) for box in boxes}
    far = {(box.top + box.height == 400, box.left + box.width == 400) for box in boxes}
    assert len(corner) == len(far) == 4


def test_the_same_randomness_gives_the_same_crop():
    draws = [
        random_resized_crop_box(300, 200, (0.2, 1), (0.75, 1.33), np.random.default_rng(9))
        for _ in range(2)
    ]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("box", [Box(0, 0, 48, 64), Box(5, 9, 40, 30), Box(40, 60, 3, 4)])
@pytest.mark.parametrize("size", [16, 40, 96])
def test_a_resized_crop_is_torchs_float_resize_within_one_level(
    pixels: np.ndarray, box: Box, size: int
):
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    exact = F.interpolate(
        torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].double(),
        size=(size, size),
        mode="bicubic",
        antialias=True,
    )[0]
    made = crop_and_resize(pixels, box, size)
    assert made.shape == (3, size, size)
    assert made.dtype == torch.uint8
    assert (made.double() - exact.clamp(0, 255).round()).abs().max() <= 1


def test_a_crop_of_the_right_size_is_not_touched(pixels: np.ndarray):
    made = crop_and_resize(pixels, Box(3, 7, 32, 32), 32)
    np.testing.assert_array_equal(made.permute(1, 2, 0).numpy(), pixels[3:35, 7:39])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (300, 200), (10, 10)])
def test_the_test_transform_shows_the_center_of_the_scaled_image(height: int, width: int):
    # On a ramp a pixel's level is its place, so the result says which part of the image it shows.
    down, across = np.mgrid[0:height, 0:width]
    ramp = np.stack([down * 255 / height, across * 255 / width, 0 * down], axis=-1)
    made = center_crop(ramp.round().astype(np.uint8), 28, 28 / 32).double()
    assert made.shape == (3, 28, 28)
    shown = min(height, width) * 28 / 32  # pixels of the image a side
    for channel, length in [(0, height), (1, width)]:
        line = made[channel].mean(dim=1 - channel)
        ends = (np.array([0.5, 27.5]) / 28 - 0.5) * shown + length / 2 - 0.5
        # A pixel of the image more or less, and its rounding, are allowed.
        np.testing.assert_allclose(line[[0, -1]], ends * 255 / length, atol=255 / length + 1)


def test_resizing_is_bit_by_bit_what_interpolate_does(pixels: np.ndarray):
    for box, size in [(Box(0, 0, 48, 64), 24), (Box(3, 5, 40, 17), 32), (Box(10, 9, 1, 30), 16)]:
        cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        planes = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None]
        expected = F.interpolate(planes, size=(size, size), mode="bicubic", antialias=True)[0]
        assert torch.equal(crop_and_resize(pixels, box, size), expected)


def test_all_crops_of_an_image_come_from_one_decoding(monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    plain = Picture.pixels

    def counting(self: Picture, shrink: int = 1, rows: int | None = None) -> np.ndarray:
        decoded.append(shrink)
        return plain(self, shrink, rows)

    monkeypatch.setattr(Picture, "pixels", counting)
    picture = Picture(encode(photograph(200, 300), "JPEG"))
    crops = [
        Crop(Box(0, 0, 190, 200), (96, 96)),
        Crop(Box(50, 60, 100, 100), (32, 32), across=True),
    ]
    targets = [torch.empty(*crop.size, 3, dtype=torch.uint8) for crop in crops]
    render(picture, crops, targets)
    assert decoded == [1]
    whole = picture.pixels()
    for crop, target in zip(crops, targets, strict=True):
        expected = crop_and_resize(whole, crop.box, crop.size[0])
        assert torch.equal(target.permute(2, 0, 1), expected.flip(2) if crop.across else expected)


@pytest.mark.parametrize(("across", "down"), [(True, False), (False, True), (True, True)])
def test_a_mirrored_crop_is_the_mirror_image_of_the_crop(
    across: bool, down: bool, pixels: np.ndarray
):
    made = []
    for crop in (
        Crop(Box(4, 5, 30, 40), (16, 16)),
        Crop(Box(4, 5, 30, 40), (16, 16), across, down),
    ):
        made.append(torch.empty(16, 16, 3, dtype=torch.uint8))
        render(Picture.of_pixels(pixels), [crop], made[-1:])
    axes = [axis for axis, is_so in ((0, down), (1, across)) if is_so]
    assert torch.equal(made[1], made[0].flip(axes))


@pytest.mark.parametrize(("side", "shrink"), [(60, 1), (130, 2), (260, 4), (520, 8), (800, 8)])
def test_a_large_photograph_is_decoded_no_larger_than_its_crop_needs(side: int, shrink: int):
    # Smooth, as large photographs are at this scale.
    down, across = np.mgrid[0:900, 0:1000] / 90
    waves = np.stack([np.sin(down + across), np.cos(down), np.sin(across)], axis=-1)
    picture = Picture(encode((127 + 100 * waves).astype(np.uint8), "JPEG", quality=95))
    seen: list[int] = []
    plain = picture.pixels

    def watched(by: int = 1, rows: int | None = None) -> np.ndarray:
        seen.append(by)
        return plain(by, rows)

    picture.pixels = watched  # type: ignore[method-assign]
    target = torch.empty(32, 32, 3, dtype=torch.uint8)
    render(picture, [Crop(Box(50, 70, side, side), (32, 32))], [target])
    assert seen == [shrink]
    exact = crop_and_resize(plain(), Box(50, 70, side, side), 32)
    difference = (target.permute(2, 0, 1).int() - exact.int()).abs()
    assert difference.max() <= 12
    assert difference.float().mean() < 1.5


def test_a_crop_is_the_same_on_a_processor_without_vector_instructions():
    program = (
        "import hashlib, torch\n"
        "from ssl_vit.data.render import Box, Crop, render\n"
        "from ssl_vit.data.decode import Picture\n"
        "from tests.pictures import encode, photograph\n"
        "target = torch.empty(64, 64, 3, dtype=torch.uint8)\n"
        "picture = Picture(encode(photograph(190, 250), 'JPEG'))\n"
        "render(picture, [Crop(Box(7, 9, 150, 201), (64, 64), True)], [target])\n"
        "print(hashlib.sha256(target.numpy().tobytes()).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | plain,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for plain in ({}, {"ATEN_CPU_CAPABILITY": "default", "JSIMD_FORCENONE": "1"})
    }
    assert len(found) == 1
