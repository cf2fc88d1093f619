"""Decoding, against Pillow and exact pixels."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_vit.data import limits
from ssl_vit.data.decode import SHRINKS, Picture, decode_image
from ssl_vit.data.limits import MAX_PIXELS
from ssl_vit.data.values import ValueRange
from tests.pictures import encode, photograph


@pytest.fixture
def pixels() -> np.ndarray:
    """(48, 64, 3) uint8: smooth waves and some noise, like a photograph."""
    return photograph(48, 64)


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
def test_gray_becomes_three_equal_channels(pixels: np.ndarray, kind: str):
    decoded = decode_image(encode(Image.fromarray(pixels[..., 0]), kind))
    assert decoded.shape == (48, 64, 3)
    assert (decoded == decoded[..., :1]).all()
    if kind != "JPEG":
        np.testing.assert_array_equal(decoded[..., 0], pixels[..., 0])


def test_sixteen_bit_gray_is_scaled_not_cut():
    gray = np.array([[0, 257, 1000], [32768, 65000, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(gray), "PNG"), ValueRange(0, 65535))
    assert decoded[..., 0].tolist() == [[0, 1, 4], [128, 253, 255]]  # value / 257, rounded
    assert (decoded == decoded[..., :1]).all()


def test_palettes_are_looked_up(pixels: np.ndarray):
    few = (pixels // 128 * 255).astype(np.uint8)  # eight colors
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "shape"), [("JPEG", (48, 64)), ("PNG", (30, 20)), ("TIFF", (30, 20))]
)
def test_an_exif_orientation_is_applied_as_pillow_applies_it(
    orientation: int, kind: str, shape: tuple[int, int]
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(*shape), kind, exif=exif)
    picture = Picture(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (picture.width, picture.height) == upright.size
    found, expected = picture.pixels().astype(int), np.asarray(upright).astype(int)
    assert np.abs(found - expected).max() <= 2


def test_an_exif_block_that_makes_no_sense_costs_nothing(pixels: np.ndarray):
    data = bytearray(encode(pixels, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert decode_image(bytes(data)).shape == pixels.shape


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize(("orientation", "shape"), [(1, (101, 203)), (6, (104, 208))])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(
    shrink: int, orientation: int, shape: tuple[int, int]
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(*shape)
    picture = Picture(encode(image, "JPEG", quality=95, exif=exif))
    small = picture.pixels(shrink)
    sides = (picture.height, picture.width)
    assert small.shape[:2] == tuple(-(-side // shrink) for side in sides)
    # Block means of the whole, but for blocks that the edge cuts.
    whole = picture.pixels().astype(float)
    rows, columns = (side // shrink for side in sides)
    blocks = whole[: rows * shrink, : columns * shrink].reshape(rows, shrink, columns, shrink, 3)
    difference = np.abs(small[:rows, :columns] - blocks.mean(axis=(1, 3)))
    assert difference.mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "CMYK"])
def test_only_jpegs_are_shrunk(pixels: np.ndarray, kind: str):
    if kind == "CMYK":
        data = encode(Image.fromarray(pixels).convert("CMYK"), "JPEG")
    else:
        data = encode(pixels, kind)
    assert Picture(data).pixels(4).shape == pixels.shape


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"progressive": True}])
def test_the_upper_rows_alone_are_those_of_the_whole_image(
    shrink: int, subsampling: int, options: dict[str, object]
):
    image = photograph(203, 150)
    data = encode(image, "JPEG", quality=90, subsampling=subsampling, **options)
    whole = Picture(data).pixels(shrink)
    for rows in (1, 17, 100, 186, 190, 203):
        needed = -(-rows // shrink)
        found = Picture(data).pixels(shrink, rows)
        assert len(found) >= needed
        np.testing.assert_array_equal(found[:needed], whole[:needed])


def test_rows_that_are_not_needed_are_not_decoded():
    picture = Picture(encode(photograph(400, 100), "JPEG"))
    assert len(picture.pixels(1, 100)) < 130
    gray = Picture(encode(photograph(400, 100)[..., 0], "JPEG"))
    assert len(gray.pixels(1, 100)) < 130


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_jpeg_that_is_cut_off_is_found_whichever_rows_are_needed(kept: float):
    data = encode(photograph(400, 400), "JPEG")
    picture = Picture(data[: int(len(data) * kept)])
    for rows in (16, 200, 400):
        with pytest.raises(ValueError, match="not a readable image"):
            picture.pixels(1, rows)


def test_damage_is_found_where_pillow_would_go_on_with_gray():
    data = encode(photograph(400, 400), "JPEG", quality=95)
    third = len(data) // 3
    # A marker where none may be: what follows belongs to nothing.
    damaged = data[:third] + b"\xff\xd9" + data[third + 2 :]
    assert Image.open(io.BytesIO(damaged)).convert("RGB").size == (400, 400)
    for rows in (390, 400):
        with pytest.raises(ValueError, match="not a readable image"):
            Picture(damaged).pixels(1, rows)
    assert len(Picture(damaged).pixels(1, 16)) < 60  # the damage is far below


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(pixels: np.ndarray):
    data = encode(pixels, "JPEG")
    np.testing.assert_array_equal(decode_image(data + bytes(100)), decode_image(data))


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch):
    assert MAX_PIXELS == 178_956_970
    data = {kind: encode(photograph(40, 50), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")}
    monkeypatch.setattr(limits, "MAX_PIXELS", 1999)
    for file in data.values():
        with pytest.raises(ValueError, match="pixels"):
            Picture(file)
