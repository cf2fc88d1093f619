"""Images of more than 8 bits: one range for a set, from pack and index to the export."""

import json
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from ssl_vit.data.decode import decode_image
from ssl_vit.data.index_file import read_index
from ssl_vit.data.sources import open_shards
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import read_export_info
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import read_config
from ssl_vit.run.value_range import settle_values
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_data_prep.survey import Look, find_no_data, survey
from tests.command_line import losses, ssl_vit
from tests.pictures import photograph


def write_tiffs(folder: Path, low: int = 500, high: int = 3500, count: int = 24) -> None:
    """12-bit values in 16-bit files, two classes."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            gray = photograph(72, 96, seed=number)[..., 0].astype(float)
            values = low + (gray - gray.min()) / np.ptp(gray) * (high - low)
            tifffile.imwrite(folder / name / f"{number:03d}.tif", values.round().astype(np.uint16))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    write_tiffs(folder / "images")
    pack_images(folder / "images", folder / "shards", PackOptions(40_000, val_fraction=0.3))
    return folder / "shards"


def deep(values: np.ndarray, depth: str = "16-bit", no_data: float | None = None) -> Look:
    return Look("", depth, True, values.astype(np.float64).reshape(-1), no_data)


RNG = np.random.default_rng(0)
COUNTS = RNG.integers(100, 4000, 4000)
SHARES = RNG.random(4000)


@pytest.mark.parametrize(
    ("looks", "low", "high", "no_data"),
    [
        ([deep(COUNTS)], 100, 3999, None),
        # A hot pixel in a thousand does not count.
        ([deep(np.append(COUNTS, [65535, 65535]))], 100, 3999, None),
        ([deep(COUNTS - 1024, "16-bit signed")], -924, 2975, None),
        ([deep(SHARES, "32-bit float")], 0.0, 1.0, None),
        ([deep(np.append(SHARES, [-9999] * 400), "32-bit float")], 0.0, 1.0, -9999),
        ([deep(np.append(SHARES, [3.4e38] * 40), "32-bit float")], 0.0, 1.0, 3.4e38),
        # A saturated pixel is white, and does not stretch the range.
        ([deep(np.append(COUNTS, [65535] * 100))], 100, 3999, None),
        ([deep(np.append(COUNTS, [60000] * 100))], 100, 3999, 60000),
        # float32 holds neighbors of what is said in decimal.
        ([deep(np.append(SHARES, np.full(400, 1e20, np.float32)), no_data=1e20)], 0, 1, 1e20),
        ([deep(np.append(SHARES, [-3.4028235e38] * 9), no_data=-3.40282e38)], 0, 1, -3.40282e38),
        # A large offset does not round the range away.
        ([deep(2_000_000 + 3 * SHARES, "64-bit float")], 2_000_000, 2_000_003, None),
        ([deep(np.append(SHARES, [-1.0] * 400), no_data=-1.0)], 0.0, 1.0, -1.0),
        # One range for all: the second image alone would be stretched.
        ([deep(COUNTS), deep(np.full(4000, 200))], 100, 3999, None),
        ([deep(np.full(4000, 7))], 7, 8, None),
    ],
)
def test_a_range_is_measured(looks: list[Look], low: float, high: float, no_data: float | None):
    found = survey(looks, None, None).values
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01 * (high - low) + 1e-9)
    assert found.no_data == no_data
    assert found.num_images == len(looks)


@pytest.mark.parametrize(
    "values", [np.array([0.0] * 500 + [1000.0] * 500), COUNTS - 2000.0, np.append(SHARES, [2] * 9)]
)
def test_a_mask_and_a_tail_are_data(values: np.ndarray):
    assert find_no_data(values) is None


@pytest.mark.parametrize(
    ("looks", "given", "said"),
    [
        ([deep(COUNTS)], ValueRange(0, 65535), "less than a tenth"),
        ([deep(COUNTS)], ValueRange(0, 2000), r"\d+% of the sampled values are outside"),
        ([Look("", "8-bit", False, np.full(500, 3.0))], None, "levels 3 … 3 of 0 … 255 only"),
        ([Look("", "8-bit", False, COUNTS % 256)], ValueRange(0, 9), "have no effect"),
        ([deep(COUNTS), deep(SHARES, "32-bit float")], None, "different kinds of values"),
        ([deep(np.append(COUNTS, [65535] * 99))], None, "as a saturated pixel"),
        ([deep(np.append(SHARES, [-9999] * 400))], None, "-9,999 is treated as no data"),
    ],
)
def test_what_is_odd_about_a_range_is_said(looks: list[Look], given: ValueRange | None, said: str):
    (note,) = survey(looks, given, None).notes
    assert re.search(said, note)


def test_a_sample_without_any_data_needs_a_range():
    empty = [deep(np.full(100, -9999.0), "32-bit float"), deep(np.zeros(0), "32-bit float")]
    with pytest.raises(UserError, match="have no pixels with data"):
        survey(empty, None, -9999)
    found = survey(empty, ValueRange(0, 1), -9999)
    assert found.values == ValueRange(0, 1, -9999)
    mixed = survey([*empty, deep(COUNTS)], None, -9999)
    assert mixed.values is not None
    assert mixed.values.low == pytest.approx(100, abs=20)
    assert mixed.notes == ()


def test_a_said_range_keeps_the_value_without_data(shards: Path, tmp_path: Path):
    index = tmp_path / "index"
    done = ssl_vit("shards", "index", shards / "train", "--out", index, "--no-data", "600")
    assert done.returncode == 0, done.stderr
    config = read_config("mae_small_data", [f"data.shards={index}"], is_smoke=False)
    opened = open_shards(index)
    for word in ((), ("data.value_range=[0,4095]",)):
        settled, _ = settle_values(apply_overrides(config, word), opened, None)
        assert settled.data.no_data == 600
    said, notes = settle_values(
        apply_overrides(config, ["data.no_data=3"]), open_shards(shards / "train"), None
    )
    assert said.data.no_data == 3
    assert len(notes) == 2
    ignored, notes = settle_values(apply_overrides(config, ["data.no_data=3"]), None, None)
    assert ignored.data.value_range == "auto"
    assert "no effect" in notes[0]


def test_no_data_is_a_finite_value(shards: Path, tmp_path: Path):
    words = ("shards", "index", shards / "train", "--out", tmp_path)
    done = ssl_vit(*words, "--no-data", "inf")
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)
    done = ssl_vit(*words, "--no-data", "nan")  # which never is data
    assert done.returncode == 0, done.stderr


def test_an_unremarkable_set_has_no_notes():
    assert survey([deep(COUNTS)], None, None).notes == ()
    assert survey([deep(COUNTS)], ValueRange(0, 4095), None).notes == ()
    assert survey([Look("", "8-bit", False, COUNTS % 256)], None, None).notes == ()


def test_all_splits_of_a_pack_share_a_range_and_training_sees_it_used(shards: Path):
    train, val = read_index(shards / "train").values, read_index(shards / "val").values
    assert train == val
    assert train is not None
    assert (train.low, train.high) == pytest.approx((500, 3500), abs=150)
    opened = open_shards(shards / "train")
    levels = {level for n in range(8) for level in np.unique(decode_image(opened.read(n), train))}
    assert len(levels) > 200
    assert check_shards(str(shards / "train"), decode=True, workers=1)[1] == []
    with Image.open(shards / "train" / "contact_sheet.png") as sheet:
        shown = np.asarray(sheet.convert("L"))[30:140, 10:130]
    assert np.ptp(shown) > 200


def test_an_index_measures_the_same_range(shards: Path, tmp_path: Path):
    out = tmp_path / "index"
    done = ssl_vit("shards", "index", shards / "train", shards / "val", "--out", out)
    assert done.returncode == 0, done.stderr
    measured, packed = read_index(out).values, read_index(shards / "train").values
    assert measured is not None
    assert packed is not None
    assert (measured.low, measured.high) == pytest.approx((packed.low, packed.high), abs=40)
    assert "16-bit" in done.stdout
    assert f"values {measured}" in done.stdout


def test_a_given_range_is_kept_and_a_wrong_one_refused(shards: Path, tmp_path: Path):
    command = ("shards", "index", shards / "train", "--out", tmp_path)
    done = ssl_vit(*command, "--value-range", "0", "65535", "--no-data", "7")
    assert "WARNING" in done.stdout
    assert read_index(tmp_path).values == ValueRange(0, 65535, 7)
    done = ssl_vit(*command, "--value-range", "9", "9")
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)


def test_a_run_keeps_the_range_and_exports_it(shards: Path, tmp_path: Path):
    run, values = tmp_path / "run", read_index(shards / "train").values
    assert values is not None
    short = ("schedule.length=3", "schedule.warmup=1")
    words = ("pretrain", "mae_small_data", "--smoke", "--run", run, *short)
    data = f"data.shards={shards / 'train'}"
    done = ssl_vit(*words, data)
    assert done.returncode == 0, done.stderr
    assert f"values {values} become 0 … 255 (from the index)" in done.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["value_range"] == [values.low, values.high]
    assert read_export_info(run).values == values
    # The range decides what the network sees.
    other = ssl_vit(*words[:4], tmp_path / "other", *short, data, "data.value_range=[0,65535]")
    assert other.returncode == 0, other.stderr
    assert "has another value range" in other.stderr
    assert losses(tmp_path / "other")[0][1] != losses(run)[0][1]
    # An index that was made again with another range changes neither a resumed run …
    index = json.loads((shards / "train" / "index.json").read_text())
    index["values"] |= {"low": 0, "high": 65535}
    again = tmp_path / "again"
    again.mkdir()
    for file in (shards / "train").iterdir():
        (again / file.name).symlink_to(file)
    (again / "index.json").unlink()
    (again / "index.json").write_text(json.dumps(index))
    done = ssl_vit(*words, f"data.shards={again}")
    assert done.returncode == 0, done.stderr
    # … nor one that starts from it.
    done = ssl_vit(
        *words[:4], tmp_path / "next", *short, f"data.shards={again}", f"resume_from={run}"
    )
    assert done.returncode == 0, done.stderr
    assert read_export_info(tmp_path / "next").values == values
    assert "has another value range, 0 … 65,535; the one from resume_from is used" in done.stderr


def test_two_sets_of_different_ranges_need_one_to_be_said(shards: Path, tmp_path: Path):
    write_tiffs(tmp_path / "images", 0, 60_000, count=4)
    pack_images(tmp_path / "images", tmp_path / "shards")
    both = [shards / "train", tmp_path / "shards"]
    with pytest.raises(UserError, match="different value ranges"):
        _ = open_shards([str(each) for each in both]).values


def test_pages_become_samples(tmp_path: Path):
    stack = np.stack([photograph(72, 96, seed)[..., 0].astype(np.uint16) * 10 for seed in range(5)])
    images = tmp_path / "images"
    images.mkdir()
    tifffile.imwrite(images / "stack.tif", stack, imagej=True)
    tifffile.imwrite(images / "single.tif", stack[0])
    for page, count in (("first", 2), ("middle", 2), ("each", 6)):
        folder = tmp_path / page
        done = ssl_vit("shards", "pack", images, folder, "--page", page)
        assert done.returncode == 0, done.stderr
        assert "files with several pages: 1, with 5 pages in all" in done.stdout
        opened = open_shards(folder)
        assert opened.num_samples == count
        pictures = {
            opened.key(n): decode_image(opened.read(n), opened.values) for n in range(count)
        }
        if page == "each":
            assert sorted(pictures) == ["single", *(f"stack_page_{n}" for n in range(1, 6))]
        else:
            number = {"first": 0, "middle": 2}[page]
            values = opened.values
            assert values is not None
            np.testing.assert_array_equal(pictures["stack"][..., 0], values.to_bytes(stack[number]))


def test_a_pack_stops_where_most_images_cannot_be_read(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        bands = np.zeros((32, 32, 13), np.uint16)
        tifffile.imwrite(
            images / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig"
        )
    Image.fromarray(photograph(32, 32)).save(images / "good.png")
    done = ssl_vit("shards", "pack", images, tmp_path / "shards")
    assert done.returncode == 2
    assert "6 of 7 sampled files" in done.stderr
    assert "a TIFF of 13 bands, 16-bit" in done.stderr
    assert not (tmp_path / "shards" / "index.json").exists()


def test_a_deep_image_that_no_sample_showed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(11):
        Image.fromarray(photograph(16, 16, number)).save(images / f"{number:03d}.png")
    tifffile.imwrite(images / "deep.tif", np.arange(256, dtype=np.uint16).reshape(16, 16))
    monkeypatch.setattr("ssl_vit_data_prep.sampling.SAMPLED_IMAGES", 4)
    made = [
        pack_images(images, tmp_path / str(seed), PackOptions(shuffle_seed=seed))
        for seed in range(8)
    ]
    for each in made:
        expected = {} if each.survey.values else {"no value range": 1}
        assert each.refused == expected
        assert each.num_images == 12 - len(expected)
    assert {bool(each.refused) for each in made} == {True, False}


@pytest.mark.parametrize(("page", "high"), [("first", 300), ("middle", 4000), ("each", 4000)])
@pytest.mark.parametrize("count", [1, 20])
def test_the_range_is_that_of_the_pages_that_are_packed(
    page: Literal["first", "middle", "each"], high: int, count: int, tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for number in range(count):
        share = photograph(40, 48, seed=number)[..., 0] / 255
        stack = np.stack([share * most for most in (300, 4000, 800)]).astype(np.uint16)
        tifffile.imwrite(
            tmp_path / "images" / f"{number}.tif", stack, photometric="minisblack", metadata=None
        )
    made = pack_images(tmp_path / "images", tmp_path / "shards", PackOptions(page=page))
    values = made.survey.values
    assert values is not None
    assert 0.8 * high < values.high < high
    (packed,) = made.sets
    assert packed.statistics is not None
    assert packed.statistics.num_images == count * (3 if page == "each" else 1)
    assert 0.1 < packed.statistics.mean[0] < 0.7


def test_values_that_are_not_finite_or_turned_around_are_said(tmp_path: Path):
    values = photograph(40, 48)[..., 0].astype(np.float32)
    values[3, 3], values[4, 4] = np.inf, np.nan
    tifffile.imwrite(tmp_path / "float.tif", values)
    tifffile.imwrite(
        tmp_path / "white.tif",
        photograph(40, 48)[..., 0].astype(np.uint16),
        photometric="miniswhite",
    )
    done = ssl_vit("shards", "pack", tmp_path, tmp_path.with_name("shards"))
    assert "note     1 of 2 sampled images have values that are not finite" in done.stdout
    assert "note     1 of 2 sampled images are TIFFs in which low values are white" in done.stdout
