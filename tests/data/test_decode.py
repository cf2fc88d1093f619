"""Decoding and cropping, against Pillow, exact pixels, and torch's own resize in floating point."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_vit.data.augment import (
    Box,
    crop_and_resize,
    random_resized_crop_box,
    resize_and_center_crop,
)
from ssl_vit.data.decode import decode_image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    """(48, 64, 3) uint8: smooth waves and some noise, like a photograph."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:48, 0:64] / 10
    waves = np.stack([np.sin(down + across), np.cos(down), np.sin(across * 2)], axis=-1)
    return np.clip(127 + 80 * waves + rng.normal(0, 8, (48, 64, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_is_what_pillow_makes_of_it(pixels: np.ndarray, subsampling: int):
    data = encode(Image.fromarray(pixels), "JPEG", quality=90, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(decode_image(data) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_the_exact_pixels(pixels: np.ndarray, kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(pixels), kind, **options)
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_grey_becomes_three_equal_channels(pixels: np.ndarray, kind: str):
    decoded = decode_image(encode(Image.fromarray(pixels[..., 0]), kind))
    assert decoded.shape == (48, 64, 3)
    assert (decoded == decoded[..., :1]).all()
    if kind != "JPEG":
        np.testing.assert_array_equal(decoded[..., 0], pixels[..., 0])


def test_sixteen_bit_grey_is_scaled_not_cut():
    grey = np.array([[0, 257, 1000], [32768, 65000, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(grey), "PNG"))
    assert decoded[..., 0].tolist() == [[0, 1, 4], [128, 253, 255]]  # value / 257, rounded
    assert (decoded == decoded[..., :1]).all()


def test_transparency_is_dropped_and_palettes_are_looked_up(pixels: np.ndarray):
    opacity = np.arange(48 * 64, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 1)
    with_opacity = Image.fromarray(np.concatenate([pixels, opacity], axis=-1))
    np.testing.assert_array_equal(decode_image(encode(with_opacity, "PNG")), pixels)
    few = (pixels // 128 * 255).astype(np.uint8)  # eight colours
    palette = Image.fromarray(few).quantize(8)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), few)


def test_cmyk_jpeg_is_read(pixels: np.ndarray):
    image = Image.fromarray(pixels)
    decoded = decode_image(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - pixels).mean() < 6


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: b"garbage", lambda data: data[:40], lambda data: data[:-200]],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_bytes_that_are_no_whole_image_are_a_value_error(
    pixels: np.ndarray, kind: str, spoil: Callable[[bytes], bytes]
):
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(spoil(encode(Image.fromarray(pixels), kind)))


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
def test_the_test_transform_shows_the_centre_of_the_scaled_image(height: int, width: int):
    # On a ramp a pixel's level is its place, so the result says which part of the image it shows.
    down, across = np.mgrid[0:height, 0:width]
    ramp = np.stack([down * 255 / height, across * 255 / width, 0 * down], axis=-1)
    made = resize_and_center_crop(ramp.round().astype(np.uint8), size=28, shorter_side=32).double()
    assert made.shape == (3, 28, 28)
    shown = min(height, width) * 28 / 32  # pixels of the image a side
    for channel, length in [(0, height), (1, width)]:
        line = made[channel].mean(dim=1 - channel)
        ends = (np.array([0.5, 27.5]) / 28 - 0.5) * shown + length / 2 - 0.5
        # A pixel of the image more or less, and its rounding, are allowed.
        np.testing.assert_allclose(line[[0, -1]], ends * 255 / length, atol=255 / length + 1)
