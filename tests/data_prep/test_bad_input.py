"""Everything that lies in people's image folders: what is packed, what is refused and why."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.decode import decode_image
from ssl_vit.data.sources import open_shards
from ssl_vit.data.values import ValueRange
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.inspection import inspect
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.refusals import RefusedError
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.pictures import encode, photograph

PICTURE = photograph(36, 52)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so; its pixels are far fewer."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def bmp_of_size(width: int, height: int) -> bytes:
    data = bytearray(encode(PICTURE, "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encode(PICTURE, "JPEG")
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def good_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (np.arange(36 * 52).reshape(36, 52) * 30).astype(np.uint16)
    image = Image.fromarray(PICTURE)
    return {
        "a.jpg": encode(PICTURE, "JPEG"),
        "a.png": encode(PICTURE, "PNG"),  # the same stem
        "B.JPEG": encode(PICTURE, "JPEG", progressive=True),
        "c.webp": encode(PICTURE, "WEBP"),
        "d.bmp": encode(PICTURE, "BMP"),
        "e.tif": encode(PICTURE, "TIFF"),
        "f.tiff": encode(PICTURE, "TIFF", compression="tiff_lzw"),
        "gray.jpg": encode(PICTURE[..., 0], "JPEG"),
        "rgba.png": encode(image.convert("RGBA"), "PNG"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "sixteen.png": encode(deep, "PNG"),
        "turned.jpg": encode(PICTURE, "JPEG", exif=exif),
        "palette.png": encode(image.quantize(16), "PNG"),
        "appended.jpg": encode(PICTURE, "JPEG") + b"a phone's own data",
        "Größe 写真 📷.jpg": encode(PICTURE, "JPEG"),
        "misnamed.jpg": encode(PICTURE, "PNG"),
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name → (bytes, kind of the refusal)."""
    good = good_files()
    cut = {
        "cut.jpg": good["a.jpg"],
        "cut.png": good["a.png"],
        "cut.webp": good["c.webp"],
        "cut.bmp": good["d.bmp"],
        "cut.tif": good["e.tif"],
        "cut progressive.jpg": good["B.JPEG"],
    }
    return {
        **{name: (data[: len(data) * 2 // 3], "truncated") for name, data in cut.items()},
        "almost whole.jpg": (good["a.jpg"][:-2], "truncated"),
        "almost whole.png": (good["a.png"][:-12], "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is a text", "no image"),
        "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        "only a header.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "no image"),
        "bomb.png": (png_of_size(100_000, 100_000), "too many pixels"),
        "bomb.bmp": (bmp_of_size(30_000, 30_000), "too many pixels"),
        "bomb.jpg": (jpeg_of_size(65_000, 65_000), "too many pixels"),
        "notes.txt": (b"not looked at", "no image ending"),
        "README": (b"not looked at", "no image ending"),
        ".DS_Store": (b"", "hidden"),
    }


@pytest.fixture
def salted(tmp_path: Path) -> Path:
    """A folder with all of it, in two classes."""
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name / "deeper").mkdir(parents=True)
    for place, (name, data) in enumerate(good_files().items()):
        (images / ("cat", "dog/deeper")[place % 2] / name).write_bytes(data)
    for name, (data, _) in bad_files().items():
        (images / "dog" / name).write_bytes(data)
    (images / "dog/loop").symlink_to("..")
    (images / "dog/dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(images / "dog/pipe.jpg")
    (images / "cat/.git").mkdir()
    (images / "cat/.git/x.jpg").write_bytes(good_files()["a.jpg"])
    with (images / "cat/huge.jpg").open("wb") as file:
        file.truncate(2**31)  # sparse: takes no room
    (images / "dog/linked.jpg").symlink_to(images / "cat/a.jpg")
    os.rename(images / "dog/deeper/gray.jpg", os.fsencode(images) + b"/cat/no \xff unicode.jpg")
    return images


def expected_refusals() -> dict[str, str]:
    return {f"dog/{name}": kind for name, (_, kind) in bad_files().items()} | {
        "dog/loop": "link in a circle",
        "dog/dangling.jpg": "broken link",
        "dog/pipe.jpg": "special file",
        "cat/.git": "hidden",
        "cat/huge.jpg": "too large",
    }


@pytest.mark.parametrize("decodes", [False, True])
def test_every_file_is_packed_or_refused_with_its_reason(
    salted: Path, tmp_path: Path, decodes: bool
):
    shards = tmp_path / "shards"
    made = pack_images(salted, shards, PackOptions(4096, decodes=decodes), workers=2)
    lines = [json.loads(line) for line in (shards / "refused.jsonl").read_text().splitlines()]
    assert {line["path"]: line["kind"] for line in lines} == expected_refusals()
    assert all(line["reason"] for line in lines)
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines)
    assert sum(made.refused.values()) == len(lines)
    assert made.refused["truncated"] == 8
    assert made.num_images == len(good_files()) + 1  # and the link
    opened, faults, *_ = check_shards(str(shards), decode=True, workers=1)
    assert faults == []
    assert opened.num_samples == made.num_images


@pytest.mark.parametrize("name", good_files())
def test_a_good_image_passes_every_inspection(name: str):
    data = good_files()[name]
    values = ValueRange(0, 65535)
    inspect(data, values=values)
    inspect(data, decodes=True, values=values)
    assert decode_image(data, values).shape in ((36, 52, 3), (52, 36, 3))


@pytest.mark.parametrize(
    "name",
    [name for name, (_, kind) in bad_files().items() if kind not in ("no image ending", "hidden")],
)
def test_what_is_refused_could_not_be_decoded_either(name: str):
    data, kind = bad_files()[name]
    with pytest.raises(RefusedError) as caught:
        inspect(data)
    assert caught.value.kind == kind
    if name == "almost whole.png":
        return  # Pillow does without a PNG's end chunk; we take it for a copy that broke off
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(data)


def test_the_limit_of_pixels_is_the_users(tmp_path: Path):
    inspect(encode(PICTURE, "PNG"), max_pixels=36 * 52)
    for kind in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(RefusedError, match="the limit is"):
            inspect(encode(PICTURE, kind), max_pixels=36 * 52 - 1)


def test_damage_in_the_middle_is_found_by_decoding():
    data = bytearray(encode(photograph(200, 200), "PNG"))
    data[len(data) // 2] ^= 0xFF
    inspect(bytes(data))
    with pytest.raises(RefusedError) as caught:
        inspect(bytes(data), decodes=True)
    assert caught.value.kind == "damaged"


def test_a_folder_that_cannot_be_listed_is_refused_and_the_rest_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.jpg").write_bytes(encode(PICTURE, "JPEG"))
    plain = os.scandir

    def scandir(folder: object) -> object:
        if str(folder).endswith("/b"):  # root, who runs these tests, may list every folder
            raise PermissionError(13, "Permission denied", folder)
        return plain(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    made = pack_images(tmp_path / "images", tmp_path / "shards")
    assert made.refused == {"unreadable": 1}
    assert made.sets[0].class_counts == {"a": 1}


def test_the_summary_on_the_command_line_counts_each_kind(salted: Path, tmp_path: Path):
    command = [sys.executable, "-m", "ssl_vit", "shards", "pack", salted, tmp_path / "shards"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    kinds = list(expected_refusals().values())
    assert line.startswith(f"refused  {len(kinds)} files, listed in ")
    for kind in set(kinds):
        assert f"{kind} {kinds.count(kind)}" in line


def test_keys_of_names_that_are_alike_stay_apart(salted: Path, tmp_path: Path):
    pack_images(salted, tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    keys = [shards.key(number) for number in range(shards.num_samples)]
    assert len(set(keys)) == len(keys)
    assert "cat/no \\xff unicode" in keys


def test_a_truncated_file_with_a_thumbnail_is_told_from_a_whole_one():
    small = encode(Image.fromarray(PICTURE).resize((16, 12)), "JPEG")
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + small
    data = encode(PICTURE, "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    inspect(data)
    with pytest.raises(RefusedError, match="no end-of-image mark"):
        inspect(data[:-40])


def test_links_that_lead_to_themselves_are_refused(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.jpg").write_bytes(encode(PICTURE, "JPEG"))
    (images / "self.jpg").symlink_to("self.jpg")
    (images / "one").symlink_to("two")
    (images / "two").symlink_to("one")
    made = pack_images(images, tmp_path / "shards")
    assert made.num_images == 1
    assert made.refused == {"link in a circle": 3}


def test_whatever_a_parser_trips_over_is_a_damaged_image():
    """TIFF directories at random: Pillow raises TypeError, OverflowError, struct.error and more."""
    rng = np.random.default_rng(5)
    data = encode(PICTURE, "TIFF")
    directory = int.from_bytes(data[4:8], "little")
    failed = 0
    for _ in range(3_000):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(directory, min(len(data), directory + 140))] = rng.integers(256)
        try:
            decode_image(bytes(broken))
        except ValueError:
            failed += 1
    assert failed > 300


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_broken_exif_block_does_not_cost_the_image(kind: str):
    data = encode(PICTURE, kind, exif=b"Exif\0\0garbage that is no TIFF", lossless=True)
    assert np.array_equal(decode_image(data), PICTURE)
