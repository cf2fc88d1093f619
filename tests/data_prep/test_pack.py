"""Packing and checking shards. Oracles: the files on disk, tarfile, and stock webdataset."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.units import parse_bytes
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.keys import assign_keys
from ssl_vit_data_prep.pack import PackedSet, pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_data_prep.tar import header

LONG = "a very long name of an image " * 6  # 174 characters; a tar header has room for 100


def picture(seed: int, ending: str = "png", side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending))
    return stream.getvalue()


def fill(folder: Path, paths: list[str]) -> dict[str, bytes]:
    """Write a picture at every path; returns what was written."""
    contents = {}
    for seed, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        contents[path] = picture(seed, path.rpartition(".")[2].lower().replace("jpeg", "jpg"))
        (folder / path).write_bytes(contents[path])
    return contents


def pack(images: Path, shards: Path, shard_bytes: int = 2**20, workers: int = 1) -> PackedSet:
    (packed,) = pack_images(images, shards, PackOptions(shard_bytes), workers).sets
    return packed


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(shards: Path) -> dict[str, str]:
    """Path → kind of every file that was not packed."""
    lines = map(json.loads, (shards / "refused.jsonl").read_text().splitlines())
    return {line["path"]: line["kind"] for line in lines}


def webdataset_samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key → ending → bytes, as the stock library reads the tars."""
    urls = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    return {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in WebDataset(urls, shardshuffle=False)
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    fill(
        tmp_path / "images",
        [f"{kind}/{number:02d}.jpg" for kind in ("cat", "dog") for number in range(8)],
    )
    return tmp_path / "images"


def test_every_packed_image_is_the_file_on_disk_with_its_folder_as_class(tmp_path: Path):
    paths = ["b/x.jpg", "b/deep/er/y.PNG", "a/z.jpeg", "c/w.webp", "c/v.bmp", "c/u.tif"]
    contents = fill(tmp_path / "images", paths)
    summary = pack(tmp_path / "images", tmp_path / "shards", shard_bytes=4096)
    shards = open_shards(tmp_path / "shards")
    assert shards.classes == ("a", "b", "c")
    assert summary.class_counts == {"a": 1, "b": 2, "c": 3}
    assert summary.num_images == shards.num_samples == 6
    assert summary.num_shards == len(shards.shards) > 1
    read = {shards.key(n): (shards.read(n), int(shards.labels[n])) for n in range(6)}
    assert read == {
        path.rpartition(".")[0]: (data, "abc".index(path[0])) for path, data in contents.items()
    }


def test_images_at_the_top_have_no_class(tmp_path: Path):
    fill(tmp_path / "images", ["x.jpg", "folder/y.jpg"])
    assert pack(tmp_path / "images", tmp_path / "shards").class_counts == {}
    shards = open_shards(tmp_path / "shards")
    assert shards.classes == ()
    assert shards.labels.tolist() == [-1, -1]
    assert all(set(s) == {"jpg"} for s in webdataset_samples(tmp_path / "shards").values())


def test_stock_webdataset_reads_the_shards(tmp_path: Path):
    names = {
        "plain.jpg": "plain",
        "UPPER.JPG": "UPPER",
        "v1.2.final.png": "v1_2_final",
        "fo.ld.er/x.jpg": "fo.ld.er/x",
        "Größe 写真 📷.jpg": "Größe 写真 📷",
        "line\nbreak.png": "line_break",
        f"{LONG}.jpg": LONG,
        f"{'ü' * 60}.jpg": "ü" * 60,  # 60 characters, 120 bytes
        f"{LONG}/{LONG}/x.png": f"{LONG}/{LONG}/x",
    }
    tops = ("__meta__", "b")  # webdataset skips top folders named like the first
    contents = fill(tmp_path / "images", [f"{top}/{name}" for top in tops for name in names])
    pack(tmp_path / "images", tmp_path / "shards", shard_bytes=20_000)
    expected = {}
    for path, data in contents.items():
        top, _, name = path.partition("/")
        ending = name.rpartition(".")[2].lower()
        key = f"{top.replace('__meta__', '_meta__')}/{names[name]}"
        expected[key] = {ending: data, "cls": str(tops.index(top)).encode()}
    assert webdataset_samples(tmp_path / "shards") == expected
    shards = open_shards(tmp_path / "shards")
    assert {shards.key(n) for n in range(shards.num_samples)} == set(expected)


def test_a_name_that_is_no_unicode_can_be_packed(tmp_path: Path):
    fill(tmp_path / "images", ["k/x.jpg"])
    os.rename(tmp_path / "images/k/x.jpg", os.fsencode(tmp_path) + b"/images/k/\xff.jpg")
    pack(tmp_path / "images", tmp_path / "shards")
    assert set(webdataset_samples(tmp_path / "shards")) == {"k/\\xff"}


def test_names_that_differ_only_by_ending_or_dots_stay_apart(tmp_path: Path):
    paths = ["a.b.jpg", "a.jpeg", "a.jpg", "a.png", "a_b.jpg", "a_png.png", "s/a.jpg"]
    keys = ["a_b", "a", "a_jpg", "a_png", "a_b_jpg", "a_png_png", "s/a"]
    assert assign_keys(paths) == keys
    contents = fill(tmp_path / "images", paths)
    pack(tmp_path / "images", tmp_path / "shards")
    found = webdataset_samples(tmp_path / "shards")
    assert {key: next(iter(found[key].values())) for key in found} == {
        key: contents[path] for key, path in zip(keys, paths, strict=True)
    }
    assert assign_keys(["a.b.jpg", "a_b.jpg", "a_b_jpg.jpg"]) == ["a_b", "a_b_jpg", "a_b_jpg_jpg"]
    assert assign_keys(["a.JPG", "a.Jpg", "a.jpg"]) == ["a", "a_jpg", "a_jpg_2"]


def test_the_number_of_workers_does_not_change_a_byte(images: Path, tmp_path: Path):
    (images / "cat/broken.jpg").write_bytes(b"no image")
    pack(images, tmp_path / "one", shard_bytes=8_000, workers=1)
    pack(images, tmp_path / "three", shard_bytes=8_000, workers=3)
    one = everything(tmp_path / "one")
    assert len(one) > 5
    assert one == everything(tmp_path / "three")


def test_another_seed_gives_another_order_of_the_same_images(images: Path, tmp_path: Path):
    keys = []
    for seed in (0, 1):
        pack_images(images, tmp_path / str(seed), PackOptions(shuffle_seed=seed))
        shards = open_shards(tmp_path / str(seed))
        keys.append([shards.key(n) for n in range(shards.num_samples)])
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_no_shard_is_larger_than_asked_for(images: Path, tmp_path: Path):
    pack(images, tmp_path / "shards", shard_bytes=20_000)
    sizes = [shard.num_bytes for shard in open_shards(tmp_path / "shards").shards]
    assert len(sizes) > 1
    # tar ends a file with two empty blocks and fills it up to 10,240 bytes.
    assert all(size <= 20_000 + 1_024 + 10_240 for size in sizes)


def test_links_to_folders_are_followed_but_not_in_circles(images: Path, tmp_path: Path):
    fill(tmp_path / "elsewhere", ["x.jpg"])
    (images / "emu").symlink_to(tmp_path / "elsewhere")
    (images / "cat/again").symlink_to(images)
    assert pack(images, tmp_path / "shards").class_counts == {"cat": 8, "dog": 8, "emu": 1}
    assert refused(tmp_path / "shards") == {"cat/again": "link in a circle"}


def test_overwrite_replaces_a_set_and_nothing_else(images: Path, tmp_path: Path):
    pack(images, tmp_path / "shards", shard_bytes=2_000)
    (tmp_path / "shards/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already has"):
        pack(images, tmp_path / "shards")
    pack_images(images, tmp_path / "shards", overwrite=True)
    names = set(everything(tmp_path / "shards"))
    assert names == {
        "notes.txt",
        "index.json",
        "samples.npy",
        "shard-000000.tar",
        "contact_sheet.png",
    }


def test_what_cannot_be_packed_is_said_before_anything_is_written(images: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "shard-000000.tar").write_text("of another program")
    before = sorted(tmp_path.rglob("*"))
    for source, target, problem in [
        (tmp_path / "missing", tmp_path / "s", "does not exist"),
        (tmp_path / "file", tmp_path / "s", "not a folder"),
        (tmp_path / "empty", tmp_path / "s", "jpg, jpeg, jpe, jfif, png"),
        (images, tmp_path / "file", "is a file"),
        (images, other, "other files, such as shard-000000.tar"),
        (images, images / "shards", "inside the image folder"),
        (images, images, "inside the image folder"),
    ]:
        with pytest.raises(UserError, match=problem) as caught:
            pack(source, target)
        assert "\n" not in caught.value.problem + caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_only_broken_images_is_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.jpg").write_text("no image")
    for _ in range(2):  # and what the first try left does not stand in the way of the second
        with pytest.raises(UserError, match=r"1 of 1 sampled .* cannot be read.* is text"):
            pack(tmp_path / "images", tmp_path / "shards")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1000", 1000), ("256MiB", 2**28), ("2k", 2000), ("1.5 GB", 1_500_000_000), ("1Gi", 2**30)],
)
def test_sizes_are_read_with_their_unit(text: str, num_bytes: int):
    assert parse_bytes(text, "--shard-bytes ") == num_bytes


@pytest.mark.parametrize("text", ["", "0", "-5", "many", "3PiB", "1e9", "MiB"])
def test_a_size_that_is_none_names_the_option(text: str):
    with pytest.raises(UserError, match="--shard-bytes"):
        parse_bytes(text, "--shard-bytes ")


def test_check_names_the_shard_and_the_key_of_a_changed_image(images: Path, tmp_path: Path):
    pack(images, tmp_path / "shards", shard_bytes=8_000)
    shards = open_shards(tmp_path / "shards")
    number = shards.num_samples // 2
    shard = shards.shards[shards.shard_of(number)].name
    flip_byte(tmp_path / "shards" / shard, int(shards.record(number)["offset"]))
    faults = check_shards(str(tmp_path / "shards"), decode=True, workers=2).faults
    assert [(fault.shard, fault.key) for fault in faults] == [
        (shard, ""),
        (shard, shards.key(number)),
    ]
    assert "sha256" in faults[0].problem
    assert "decoded" in faults[1].problem
    faults = check_shards(str(tmp_path / "shards"), decode=False, workers=1).faults
    assert [(fault.shard, fault.key) for fault in faults] == [(shard, "")]


def test_check_tells_where_a_tar_breaks_off(images: Path, tmp_path: Path):
    pack(images, tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    record = shards.record(5)
    flip_byte(tmp_path / "shards/shard-000000.tar", int(record["offset"] - record["lead"]))
    faults = check_shards(str(tmp_path / "shards"), decode=False, workers=1).faults
    assert [fault.key for fault in faults] == ["", "", shards.key(4)]
    assert f"damaged at byte {int(record['offset'] - record['lead']):,}" in faults[1].problem
    assert "11 of 16 images are not at their offset" in faults[2].problem


@pytest.mark.parametrize("field", ["offset", "length", "lead", "label"])
def test_check_finds_an_index_that_disagrees_with_its_tar(field: str, images: Path, tmp_path: Path):
    pack(images, tmp_path / "shards")
    records = np.load(tmp_path / "shards/samples.npy")
    records[3][field] += 1
    np.save(tmp_path / "shards/samples.npy", records)
    with tarfile.open(tmp_path / "shards/shard-000000.tar") as tar:
        names = [name for name in tar.getnames() if not name.endswith(".cls")]
    faults = check_shards(str(tmp_path / "shards"), decode=False, workers=1).faults
    assert [fault.key for fault in faults] == [names[3].removesuffix(".jpg")]
    assert field in faults[0].problem


def flip_byte(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0xFF]))


def ssl_vit(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssl_vit", "shards", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_on_the_command_line_pack_says_what_to_type_next(images: Path, tmp_path: Path):
    (images / "cat/broken.jpg").touch()
    shards = tmp_path / "my shards"
    done = ssl_vit("pack", images, shards, "--shard-bytes", "8kB", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "16 images" in done.stdout
    assert "2: cat 8, dog 8" in done.stdout
    assert "1 file, listed in" in done.stdout
    assert "empty 1" in done.stdout
    assert f"ssl-vit pretrain mae_small_data --run RUN 'data.shards={shards}'" in done.stdout
    done = ssl_vit("check", shards)
    assert done.returncode == 0
    assert done.stdout.startswith("OK: 16 images in ")
    flip_byte(shards / "shard-000000.tar", 600)
    done = ssl_vit("check", shards, "--quick")
    assert done.returncode == 1
    assert "shard-000000.tar" in done.stdout


def test_a_mistake_on_the_command_line_is_two_lines_and_exit_code_2(tmp_path: Path):
    for words in (
        ("pack", tmp_path / "missing", tmp_path / "shards"),
        ("pack", tmp_path, tmp_path / "shards", "--shard-bytes", "big"),
        ("pack", tmp_path, tmp_path / "shards", "--val-fraction", "1"),
        ("pack", tmp_path, tmp_path / "shards", "--max-pixels", "200000000"),
        ("index", tmp_path / "missing.tar"),
        ("reshard", tmp_path / "missing", tmp_path / "new"),
        ("check", tmp_path / "missing"),
    ):
        done = ssl_vit(*words)
        assert done.returncode == 2
        assert [line[:6] for line in done.stderr.splitlines()] == ["error:", "fix:  "]
        assert done.stdout == ""


@pytest.mark.parametrize(
    "name", ["a.jpg", "x/y.cls", "ü" * 50 + ".", "n" * 99, "n" * 100, "n" * 101, LONG]
)
@pytest.mark.parametrize("num_bytes", [0, 1, 511, 512, 8**11 - 1])
def test_a_tar_header_is_tarfiles_own(name: str, num_bytes: int):
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    assert header(name, num_bytes) == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
