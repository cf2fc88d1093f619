"""`ssl-vit shards check --duplicates` against images that were copied on purpose."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.pixel_digest import digest_pixels, is_single_color
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions


def check(shards: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssl_vit", "shards", "check", str(shards), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six different images of two classes, two of them copied without loss, one in another class;
    and black ones, two of one size.
    """
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.png", "cat/c.png", "dog/d.png", "dog/e.png", "dog/f.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    first, second = (Image.open(folder / "images" / name) for name in ("cat/a.png", "cat/b.png"))
    first.save(folder / "images/dog/a_again.bmp")
    second.save(folder / "images/cat/b_again.tif")
    second.save(folder / "images/cat/b_webp.webp", lossless=True)
    second.save(folder / "images/cat/b_lossy.jpg", quality=50)
    second.rotate(180).save(folder / "images/cat/b_turned.png")
    for name, height in (("g", 20), ("h", 20), ("i", 21)):
        Image.new("RGB", (30, height)).save(folder / f"images/dog/{name}.png")
    pack_images(folder / "images", folder / "shards", PackOptions(8192), 1)
    return folder / "shards"


@pytest.mark.parametrize("workers", [1, 2])
def test_copies_are_grouped_whatever_their_format(shards: Path, workers: int):
    opened, faults, _, found = check_shards(str(shards), True, workers, duplicates=True)
    assert found is not None
    assert not faults
    assert len(opened.shards) > 2
    groups = [sorted(opened.key(number) for number in group) for group in found.groups]
    assert groups[0] == ["cat/a", "dog/a_again"], "different labels come first"
    assert sorted(groups[1:]) == [["cat/b", "cat/b_again", "cat/b_webp"], ["dog/g", "dog/h"]]
    assert (found.num_images, found.num_conflicting_images, found.num_single_color) == (7, 2, 2)


def test_duplicates_are_reported_and_are_no_fault(shards: Path):
    done = check(shards, "--duplicates")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("OK: 14 images")
    found = next(n for n, line in enumerate(lines) if "the same pixels" in line)
    assert "7 images have the same pixels as another one, in 3 groups" in lines[found]
    assert "2 of them have different labels" in lines[found + 1]
    assert "2 of them have a single color" in lines[found + 2]
    assert "(labels " in lines[found + 3]
    for part in (".tar: cat/a", ".tar: dog/a_again", " = "):
        assert part in lines[found + 3]
    assert sum(", and 1 more" in line for line in lines) == 1
    assert "duplicates" not in check(shards).stdout


def test_what_decodes_nothing_cannot_compare_pixels(shards: Path):
    done = check(shards, "--duplicates", "--quick")
    assert done.returncode == 2
    assert [line[:6] for line in done.stderr.splitlines()] == ["error:", "fix:  "]


def test_a_set_without_duplicates_says_so_and_a_fault_stays_one(tmp_path: Path):
    rng = np.random.default_rng(1)
    (tmp_path / "images/a").mkdir(parents=True)
    for number in range(3):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/a/{number}.png")
    pack_images(tmp_path / "images", tmp_path / "shards", PackOptions(2**20), 1)
    assert "none: no two images" in check(tmp_path / "shards", "--duplicates").stdout
    tar = tmp_path / "shards/shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 0xFF
    tar.write_bytes(content)
    done = check(tmp_path / "shards", "--duplicates")
    assert done.returncode == 1
    assert "sha256" in done.stdout


def test_equal_digests_mean_equal_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    other = pixels.copy()
    other[3, 2, 1] ^= 1
    turned = pixels.transpose(1, 0, 2)
    gray, black = np.full((6, 4, 3), 7, np.uint8), np.zeros((6, 4, 3), np.uint8)
    spot = black.copy()
    spot[2, 2] = 1
    different = [pixels, other, turned, pixels[:5], pixels.reshape(4, 6, 3)]
    different += [gray, black, black[:5], spot]
    digests = [digest_pixels(each) for each in different]
    assert len(set(digests)) == len(different)
    assert {len(digest) for digest in digests} == {16}
    assert digest_pixels(pixels.copy()) == digests[0]
    assert digest_pixels(turned.copy()) == digest_pixels(turned), "whatever the order in memory"
    assert [is_single_color(digest) for digest in digests] == [False] * 5 + [True] * 3 + [False]
