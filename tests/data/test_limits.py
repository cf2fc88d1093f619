"""Images that would take gigabytes or minutes are refused by their headers."""

import io
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssl_vit.data import limits
from ssl_vit.data.decode import Picture, decode_image, facts_of
from ssl_vit.data.limits import MAX_SCANS, TooLargeError
from ssl_vit.data.pages import take_pages
from ssl_vit.data.values import ValueRange
from tests.pictures import encode, photograph

WHOLE = ValueRange(0, 65535)


def png_of(side: int, bits: int, color: int) -> bytes:
    """A PNG whose header says so, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )


def jpeg_of(height: int, width: int, **options: bool) -> bytes:
    """A small JPEG whose header claims another size."""
    data = encode(photograph(16, 16), "JPEG", **options)
    place = data.find(b"\xff\xc2" if options else b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def tiff_of(side: int, **options: object) -> bytes:
    """A TIFF of float values that claims to be a square of this side."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((16, 16), np.float32), **options)
    changed = bytearray(stream.getvalue())
    start = struct.unpack("<I", changed[4:8])[0]
    for place in range(start + 2, start + 2 + 12 * 4, 12):
        tag, kind = struct.unpack("<HH", changed[place : place + 4])
        if tag in (256, 257):  # its sides, in 16 or 32 bits
            changed[place + 8 : place + 12] = struct.pack(
                "<HH" if kind == 3 else "<I", side, *[0] * (kind == 3)
            )
    return bytes(changed)


@pytest.mark.parametrize(
    "data",
    [
        png_of(13_370, 16, 0),
        png_of(9_000, 16, 6),
        png_of(13_370, 8, 2),
        jpeg_of(13_000, 13_000, progressive=True),
        tiff_of(13_370, compression="zlib"),
        tiff_of(12_000),
    ],
    ids=["gray 16-bit", "RGBA 16-bit", "RGB", "progressive", "float, compressed", "float"],
)
def test_what_would_fill_a_workers_memory_is_refused_by_its_header(data: bytes):
    with pytest.raises(TooLargeError, match="MB to decode, more than 600"):
        decode_image(data, WHOLE)


@pytest.mark.parametrize("data", [png_of(13_370, 16, 0), jpeg_of(13_000, 13_000, progressive=True)])
def test_pack_refuses_it_too(data: bytes):
    with pytest.raises(TooLargeError):
        facts_of(data)


def test_a_large_photograph_of_one_scan_is_read():
    assert Picture(jpeg_of(12_000, 14_000)).width == 14_000


def test_a_jpeg_of_many_scans_is_refused():
    data = encode(photograph(16, 16), "JPEG", progressive=True)
    scan = data.find(b"\xff\xda")
    many = data[:-2] + data[scan:-2] * MAX_SCANS + b"\xff\xd9"
    with pytest.raises(TooLargeError, match="scans would take too long"):
        Picture(many)
    assert decode_image(data).shape == (16, 16, 3)
    # A phone's video behind the image is none of it.
    assert decode_image(data + b"\xff\xda\x00\x08" * MAX_SCANS).shape == (16, 16, 3)


def test_bytes_that_belong_to_nothing_hide_no_scans():
    data = encode(photograph(16, 16), "JPEG", progressive=True)
    frame, scan = data.find(b"\xff\xc2"), data.find(b"\xff\xda")
    many = data[:frame] + b"xy\xff\xd0\xff" + data[frame:-2]
    many += data[scan:-2] * MAX_SCANS + b"\xff\xd9"
    with pytest.raises(TooLargeError, match="scans"):
        Picture(many)


def test_a_tile_that_is_larger_than_its_page_counts_as_it_is():
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((16, 16), np.uint16), tile=(16, 16), compression="zlib")
    changed = bytearray(stream.getvalue())
    start = struct.unpack("<I", changed[4:8])[0]
    for place in range(start + 2, start + 2 + 12 * changed[start], 12):
        if struct.unpack("<H", changed[place : place + 2])[0] in (322, 323):
            changed[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 131_056)
    with pytest.raises(TooLargeError):
        decode_image(bytes(changed), WHOLE)


def test_a_long_stack_is_taken_apart_in_one_pass():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for number in range(40):
            file.write(np.full((8, 8), number, np.uint16), photometric="minisblack", metadata=None)
    with mock.patch.object(tifffile, "TiffFile", wraps=tifffile.TiffFile) as opened:
        pages = list(take_pages(stream.getvalue(), range(40)))
    assert opened.call_count == 1
    assert decode_image(pages[7][0], ValueRange(0, 255))[0, 0, 0] == 7


def test_a_file_larger_than_its_pixels_could_need(monkeypatch: pytest.MonkeyPatch):
    data = encode(photograph(16, 16), "PNG")
    monkeypatch.setattr(limits, "MAX_DECODE_BYTES", len(data) - 1)
    with pytest.raises(TooLargeError, match="a file of"):
        Picture(data)


def test_images_in_strips_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch):
    pixels = photograph(50, 40)
    opacity = Image.fromarray(pixels).convert("RGBA")
    opacity.putalpha(Image.fromarray(pixels[..., 0]))
    deep = np.repeat(np.arange(50, dtype=np.uint16)[:, None] * 1000, 40, axis=1)
    files = [
        encode(opacity, "PNG"),
        encode(Image.fromarray(pixels).quantize(9), "PNG"),
        encode(Image.fromarray(deep), "PNG"),
        encode(pixels, "WEBP", lossless=True),
    ]
    whole = [decode_image(data, WHOLE) for data in files]
    for module in ("decode", "raster"):
        monkeypatch.setattr(f"ssl_vit.data.{module}._BLOCK", 100)
    for data, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decode_image(data, WHOLE), expected)


def test_the_limits_fit_each_other():
    # What Pillow calls a bomb, as a JPEG of three bytes a pixel, is within the memory.
    assert limits.MAX_PIXELS * 3 < limits.MAX_DECODE_BYTES
