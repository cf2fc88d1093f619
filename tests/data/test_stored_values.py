"""Images that Pillow would round, misread or refuse: the pixels follow from arrays written here."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssl_vit.data.decode import Picture, decode_image, facts_of, read_raster
from ssl_vit.data.pages import take_pages
from ssl_vit.data.values import ValueRange
from tests.pictures import encode, photograph

LEVELS = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)  # 0 … 3,071: a 12-bit camera's
COLORS = np.stack([LEVELS, 3071 - LEVELS, LEVELS // 2], axis=-1)
RANGE = ValueRange(0, 3071)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, metadata=None, **options)
    return stream.getvalue()


def png16(values: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, written from the specification."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    parts = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W, 3) uint8 in exact arithmetic."""
    eight = np.clip(np.round((values.astype(np.float64) - low) / (high - low) * 255), 0, 255)
    return (eight if values.ndim == 3 else np.repeat(eight[..., None], 3, axis=2)).astype(np.uint8)


def bands(count: int, kind: type) -> bytes:
    return tiff(np.zeros((8, 8, count), kind), photometric="minisblack", planarconfig="contig")


GRAY: dict[str, tuple[bytes, float, float]] = {
    "png": (png16(LEVELS), 0, 3071),
    "tiff": (tiff(LEVELS), 0, 3071),
    "lzw with predictor": (tiff(LEVELS, compression="lzw", predictor=True), 0, 3071),
    "deflate in tiles": (tiff(LEVELS, compression="zlib", tile=(16, 16)), 0, 3071),
    "zstd": (tiff(LEVELS, compression="zstd"), 0, 3071),
    "big endian": (tiff(LEVELS, byteorder=">"), 0, 3071),
    "bigtiff": (tiff(LEVELS, bigtiff=True), 0, 3071),
    "signed": (tiff(LEVELS.astype(np.int16) - 1000), -1000, 2071),
    "8-bit signed": (tiff((LEVELS // 16 - 100).astype(np.int8)), -100, 91),
    "32-bit": (tiff(LEVELS.astype(np.uint32) * 1000), 0, 3_071_000),
    "32-bit signed": (tiff(LEVELS.astype(np.int32) * -1000), -3_071_000, 0),
    "16-bit float": (tiff(LEVELS.astype(np.float16)), 0, 3071),
    "32-bit float": (tiff(LEVELS.astype(np.float32) / 1000), 0, 3.071),
    "64-bit float": (tiff(LEVELS / 1000), 0, 3.071),
}


@pytest.mark.parametrize("kind", GRAY)
def test_gray_of_more_than_8_bits_is_shown_by_the_range(kind: str):
    data, low, high = GRAY[kind]
    assert facts_of(data).is_deep
    decoded = decode_image(data, ValueRange(low, high)).astype(int)
    levels = LEVELS // 16 * 16 if kind == "8-bit signed" else LEVELS
    expected = shown(levels, levels.min(), levels.max()).astype(int)
    if kind == "32-bit signed":
        expected = 255 - expected
    # Steps finer than a level of 8 bits may round to either side.
    assert np.abs(decoded - expected).max() <= 1
    assert np.ptp(decoded) == 255


COLOR = {
    "png": png16(COLORS),
    "tiff": tiff(COLORS, photometric="rgb"),
    "tiff in planes": tiff(
        COLORS.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"
    ),
    "with near infrared": tiff(
        np.concatenate([COLORS, COLORS[..., :1] * 0 + 9999], axis=-1),
        photometric="rgb",
        extrasamples=["unspecified"],
    ),
}


@pytest.mark.parametrize("kind", COLOR)
def test_color_of_more_than_8_bits_keeps_its_lower_bits(kind: str):
    np.testing.assert_array_equal(decode_image(COLOR[kind], RANGE), shown(COLORS, 0, 3071))
    assert facts_of(COLOR[kind]).num_left_out == (kind == "with near infrared")


def test_min_is_white_is_inverted():
    data = tiff(65535 - LEVELS, photometric="miniswhite")
    np.testing.assert_array_equal(decode_image(data, RANGE), shown(LEVELS, 0, 3071))


def test_eight_bit_planes_are_put_together():
    pixels = photograph(48, 64)
    data = tiff(pixels.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_what_lies_outside_of_the_range_is_black_or_white(kind: str):
    data = {"png": png16(LEVELS), "tiff": tiff(LEVELS)}[kind]
    decoded = decode_image(data, ValueRange(1000, 2000))[..., 0]
    assert set(decoded[LEVELS <= 1000]) == {0}
    assert set(decoded[LEVELS >= 2000]) == {255}
    assert decoded[LEVELS == 1500] == 128


def test_floats_without_a_number_and_without_data():
    values = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    plain = decode_image(tiff(values), ValueRange(0, 1))
    spoiled = values.copy()
    spoiled[0, 0], spoiled[0, 1], spoiled[0, 2], spoiled[1] = np.nan, np.inf, -np.inf, 7777.7
    decoded = decode_image(tiff(spoiled), ValueRange(0, 1, no_data=7777.7))
    assert decoded[0, :3, 0].tolist() == [0, 255, 0]
    assert not decoded[1].any()
    np.testing.assert_array_equal(decoded[2:], plain[2:])
    tagged = tiff(spoiled, extratags=[(42113, "s", 0, "7777.7", True)])
    assert not decode_image(tagged, ValueRange(0, 1))[1].any()


def test_values_of_more_than_8_bits_need_a_range():
    for data in (png16(LEVELS), tiff(LEVELS), tiff(LEVELS / 1000)):
        with pytest.raises(ValueError, match="without a value range"):
            decode_image(data)


def test_a_range_changes_no_image_of_8_bits():
    pixels = photograph(48, 64)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF"):
        data = encode(pixels, kind)
        np.testing.assert_array_equal(decode_image(data, ValueRange(50, 60)), decode_image(data))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bands(13, np.uint16), "13 bands, 16-bit"),
        (bands(4, np.uint8), "4 bands, 8-bit"),
        (tiff(np.zeros((8, 8), np.complex64)), "complex"),
        (tiff(LEVELS / 1000, photometric="miniswhite"), "min-is-white"),
        (tiff(np.zeros((8, 8, 4), np.uint16), photometric="separated"), "SEPARATED, 16-bit"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "NumPy"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(50), "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"  <!DOCTYPE html><html>404</html>", "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7\n" + bytes(50), "PDF"),
        (bytes(128) + b"DICM" + bytes(50), "DICOM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"plain words", "text"),
        (bytes(500), "zeros"),
    ],
)
def test_what_is_not_read_is_refused_by_name(data: bytes, name: str):
    with pytest.raises(ValueError, match=name):
        decode_image(data, RANGE)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_truncated_tiff_is_damaged(compression: str | None):
    values = np.random.default_rng(0).integers(0, 4096, (64, 64), np.uint16)
    whole = tiff(values, compression=compression, rowsperstrip=8)
    for kept in range(1000, len(whole), 700):
        with pytest.raises(ValueError):  # noqa: PT011 - each place breaks in a way of its own
            decode_image(whole[:kept], RANGE)


def on_white(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return values * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "palette", "color key"])
def test_transparency_is_shown_on_white(kind: str):
    pixels = photograph(48, 64)
    opacity = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    if kind in ("GIF", "palette", "color key"):
        opacity = (opacity > 127).astype(np.uint8) * 255
        pixels = (pixels // 128 * 120).astype(np.uint8)  # eight colors, none of them white
    image = Image.fromarray(np.dstack([pixels, opacity]))
    match kind:
        case "palette":
            data = encode(image.quantize(16), "PNG")
        case "color key":
            pixels[opacity == 0] = (1, 2, 3)
            data = encode(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))
        case "WEBP":
            data = encode(image, kind, lossless=True, exact=True)
        case _:
            data = encode(image, kind)
    assert facts_of(data).is_transparent
    assert np.abs(decode_image(data) - on_white(pixels, opacity)).max() <= 1


def test_transparency_of_16_bits_is_shown_on_white():
    opacity = np.where(LEVELS % 2, 65535, 0).astype(np.uint16)
    expected = shown(COLORS, 0, 3071)
    expected[opacity == 0] = 255
    for data in (
        png16(np.dstack([COLORS, opacity])),
        tiff(np.dstack([COLORS, opacity]), photometric="rgb", extrasamples=["unassalpha"]),
    ):
        np.testing.assert_array_equal(decode_image(data, RANGE), expected)


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("opacity", ["assocalpha", "unassalpha"])
def test_gray_tiffs_of_8_bits_with_opacity(kind: str, opacity: str):
    gray = photograph(48, 64)[..., 0]
    alpha = np.full_like(gray, 255)
    alpha[:24] = 0
    gray[:24] = 0
    stored = gray if kind == "minisblack" else 255 - gray
    data = tiff(
        np.dstack([stored, alpha]), photometric=kind, extrasamples=[opacity], planarconfig="contig"
    )
    decoded = decode_image(data)
    assert (decoded[:24] == 255).all()
    np.testing.assert_array_equal(decoded[24:, :, 0], gray[24:])


def test_the_value_without_data_is_that_of_the_file_where_white_is_low():
    tags = [(42113, "s", 0, "0", True)]
    stored = 65535 - LEVELS
    stored[0] = 0
    data = tiff(stored, photometric="miniswhite", extratags=tags)
    decoded = decode_image(data, RANGE)
    assert not decoded[0].any()
    np.testing.assert_array_equal(decoded[1:], shown(LEVELS[1:], 0, 3071))


def test_an_opaque_channel_changes_nothing():
    pixels = photograph(48, 64)
    opaque = Image.fromarray(np.dstack([pixels, np.full((48, 64), 255, np.uint8)]))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(opaque, kind)), pixels)


def jpeg_turned(*before: tuple[int, bytes]) -> bytes:
    """A JPEG with orientation 6, other segments in front of its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(photograph(32, 48), "JPEG", quality=95)
    segments = [*before, (0xE1, exif.tobytes())]
    return (
        plain[:2]
        + b"".join(
            bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
            for marker, body in segments
        )
        + plain[2:]
    )


@pytest.mark.parametrize(
    "before",
    [
        (),
        ((0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),),
        ((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b" " * 60_000),),
        tuple((0xE2, b"ICC_PROFILE\0" + bytes([n, 9]) + b"x" * 60_000) for n in range(1, 9)),
        ((0xFE, b"a comment with Exif\0\0 inside"),),
    ],
)
def test_an_exif_orientation_is_found_behind_other_segments(before: tuple[tuple[int, bytes], ...]):
    picture = Picture(jpeg_turned(*before))
    assert (picture.height, picture.width) == (48, 32)
    straight = decode_image(jpeg_turned())
    np.testing.assert_array_equal(picture.pixels(), straight)


@pytest.mark.parametrize(
    "extra",
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt", b"text\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x/>" * 500_000),
    ],
)
def test_a_png_with_long_metadata_is_read(extra: tuple[bytes, bytes]):
    pixels = photograph(32, 48)
    plain = encode(pixels, "PNG")
    start = 8 + 25  # behind the header chunk
    data = plain[:start] + chunk(*extra) + plain[start:]
    np.testing.assert_array_equal(decode_image(data), pixels)
    deep = png16(LEVELS, extra)
    np.testing.assert_array_equal(decode_image(deep, RANGE), shown(LEVELS, 0, 3071))


def test_avif_and_gif_are_read():
    pixels = photograph(48, 64)
    assert np.abs(decode_image(encode(pixels, "AVIF", quality=95)) - pixels.astype(int)).mean() < 8
    gray = pixels[..., 0]
    np.testing.assert_array_equal(decode_image(encode(gray, "GIF"))[..., 0], gray)


STACK = np.stack([LEVELS + 100 * page for page in range(3)])


def imagej(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, imagej=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        tiff(STACK, photometric="minisblack"),
        imagej(STACK),
        tiff(STACK, photometric="minisblack", compression="lzw"),
    ],
)
def test_pages_of_a_stack_are_counted_and_taken_apart(data: bytes):
    values = ValueRange(0, 4000)
    assert facts_of(data).num_pages == 3
    np.testing.assert_array_equal(decode_image(data, values), shown(STACK[0], 0, 4000))
    for number in range(3):
        page, ending = next(take_pages(data, [number]))
        assert (facts_of(page).num_pages, ending) == (1, "tif")
        np.testing.assert_array_equal(decode_image(page, values), shown(STACK[number], 0, 4000))


@pytest.mark.parametrize(
    "make",
    [
        lambda pages: tiff(np.stack(pages), photometric="rgb"),
        lambda pages: encode(
            Image.fromarray(pages[0]),
            "PNG",
            save_all=True,
            append_images=[Image.fromarray(page) for page in pages[1:]],
        ),
        lambda pages: encode(
            Image.fromarray(pages[0]),
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.fromarray(page) for page in pages[1:]],
        ),
    ],
)
def test_pages_of_8_bits(make: Callable[[list[np.ndarray]], bytes]):
    pages = [photograph(32, 48, seed) for seed in range(3)]
    data = make(pages)
    assert facts_of(data).num_pages == 3
    for number, expected in enumerate(pages):
        np.testing.assert_array_equal(decode_image(next(take_pages(data, [number]))[0]), expected)


@pytest.mark.parametrize("no_data", ["-9999", "-3.4e+38", "70000", "nan", "none"])
def test_a_value_without_data_that_cannot_occur_is_harmless(no_data: str):
    data = tiff(LEVELS, extratags=[(42113, "s", 0, no_data, True)])
    raster = read_raster(data)
    assert raster is not None
    assert len(raster.measured()) == LEVELS.size
    np.testing.assert_array_equal(decode_image(data, RANGE), shown(LEVELS, 0, 3071))


def test_a_page_of_its_own_keeps_sense_and_orientation():
    turned = [(274, "H", 1, 6, True)]
    pages = np.stack([4095 - LEVELS, 4000 - LEVELS])
    data = tiff(pages, photometric="miniswhite", extratags=turned)
    whole, values = decode_image(data, ValueRange(61440, 65535)), ValueRange(61440, 65535)
    page, _ = next(take_pages(data, [0]))
    np.testing.assert_array_equal(decode_image(page, values), whole)
    assert whole.shape == (64, 48, 3)
    frames = [Image.fromarray(photograph(20, 40, seed)) for seed in range(2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    webp = encode(
        frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exif=exif
    )
    np.testing.assert_array_equal(decode_image(next(take_pages(webp, [0]))[0]), decode_image(webp))


def test_an_orientation_survives_long_texts():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(photograph(32, 48), "PNG", exif=exif)
    text = chunk(b"zTXt", b"text\0\0" + zlib.compress(b"x" * 3_000_000))
    data = plain[:33] + text + plain[33:]
    assert decode_image(data).shape == (48, 32, 3)
    np.testing.assert_array_equal(decode_image(data), decode_image(plain))


def test_a_bilevel_tiff_is_black_and_white():
    bits = LEVELS % 3 == 0
    for image in (Image.fromarray(bits), Image.fromarray(bits).convert("1")):
        decoded = decode_image(encode(image, "TIFF"))[..., 0]
        np.testing.assert_array_equal(decoded, np.where(bits, 255, 0))


def test_a_thumbnail_is_not_a_page():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(LEVELS)
        writer.write(LEVELS[::4, ::4], subfiletype=1)
    assert facts_of(stream.getvalue()).num_pages == 1
