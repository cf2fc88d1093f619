"""Classes, manifests, splits, smaller images, statistics, and a pack that was killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.decode import decode_image
from ssl_vit.data.index_file import read_index
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.manifest import read_manifest
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.plan import set_of
from ssl_vit_data_prep.reencode import Reencoding
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.data_prep.test_pack import everything, fill, refused, webdataset_samples
from tests.pictures import encode, photograph

PATHS = [f"{kind}/{number:02d}.png" for kind in ("cat", "dog") for number in range(10)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    fill(tmp_path / "images", PATHS)
    return tmp_path / "images"


def test_classes_can_be_left_out(images: Path, tmp_path: Path):
    (made,) = pack_images(images, tmp_path / "shards", PackOptions(classes="none")).sets
    assert made.class_counts == {}
    assert set(open_shards(tmp_path / "shards").labels) == {-1}
    assert all("cls" not in sample for sample in webdataset_samples(tmp_path / "shards").values())


CSV = """path,label,photographer,year
cat/00.png,lion,"Doe, Jane",1990
cat/01.png,tiger,,
dog/02.png,,Größe,2001
dog/nowhere.png,wolf,,
"""


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_manifest_says_what_is_packed_and_what_it_is(kind: str, images: Path, tmp_path: Path):
    manifest = tmp_path / f"list.{kind}"
    rows = [
        {"path": "cat/00.png", "label": "lion", "photographer": "Doe, Jane", "year": "1990"},
        {"path": "cat/01.png", "label": "tiger", "photographer": "", "year": ""},
        {"path": str(images / "dog/02.png"), "label": "", "photographer": "Größe", "year": "2001"},
        {"path": "dog/nowhere.png", "label": "wolf", "photographer": "", "year": ""},
    ]
    if kind == "csv":
        text = CSV.replace("dog/02.png", str(images / "dog/02.png"))
    elif kind == "tsv":
        text = "\t".join(rows[0]) + "\n" + "\n".join("\t".join(row.values()) for row in rows)
    else:
        text = "\n".join(json.dumps(row) for row in rows)
    manifest.write_text(text, encoding="utf-8")
    options = PackOptions(classes="manifest", manifest=manifest)
    made = pack_images(images, tmp_path / "shards", options)
    assert made.sets[0].class_counts == {"lion": 1, "tiger": 1, "wolf": 0}
    assert made.refused == {"not in the manifest": 17, "only in the manifest": 1}
    assert refused(tmp_path / "shards")["dog/nowhere.png"] == "only in the manifest"
    samples = webdataset_samples(tmp_path / "shards")
    assert set(samples) == {"cat/00", "cat/01", "dog/02"}
    assert json.loads(samples["cat/00"]["json"]) == {"photographer": "Doe, Jane", "year": "1990"}
    assert samples["cat/00"]["cls"] == b"0"
    assert json.loads(samples["dog/02"]["json"]) == {"photographer": "Größe", "year": "2001"}
    assert "cls" not in samples["dog/02"]
    assert check_shards(str(tmp_path / "shards"), decode=True, workers=1)[1] == []


def test_numbers_are_classes_in_their_order(images: Path, tmp_path: Path):
    lines = [{"path": path, "label": 10 - n // 2} for n, path in enumerate(PATHS)]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    manifest = read_manifest(tmp_path / "list.jsonl", images)
    assert manifest.classes() == [str(number) for number in range(1, 11)]
    assert manifest.extras == {}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("m.csv", "file,label\nx.png,a\n", "no column named path, only file, label"),
        ("m.csv", "path,label\nx.png,a,b\n", "line 2, has more columns"),
        ("m.csv", "path,label\n,a\n", "line 2, has no path"),
        ("m.csv", "path,label\nx.png,a\nx.png,b\n", "lists x.png twice"),
        ("m.csv", "path,label\n../x.png,a\n", "leads out of"),
        ("m.csv", "path,label\n/elsewhere/x.png,a\n", "which is not in"),
        ("m.csv", "path,label\n", "lists no images"),
        ("m.jsonl", '{"path": "x.png"}\n{', "line 2, is not valid JSON"),
        ("m.jsonl", '["x.png"]\n', "line 1, has no path"),
        ("m.xlsx", "", "not have the ending of a manifest"),
        ("missing.csv", None, "cannot read"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_its_line(
    name: str, text: str | None, problem: str, images: Path, tmp_path: Path
):
    if text is not None:
        (tmp_path / name).write_text(text)
    options = PackOptions(classes="manifest", manifest=tmp_path / name)
    with pytest.raises(UserError, match=problem):
        pack_images(images, tmp_path / "shards", options)
    assert not (tmp_path / "shards").exists()


def test_a_split_is_by_the_name_of_the_image_alone(images: Path, tmp_path: Path):
    options = PackOptions(val_fraction=0.3)
    train, val = pack_images(images, tmp_path / "shards", options).sets
    assert (train.name, val.name) == ("train", "val")
    assert train.num_images + val.num_images == 20
    opened = {part: open_shards(tmp_path / "shards" / part) for part in ("train", "val")}
    keys = {
        part: {shards.key(n) for n in range(shards.num_samples)} for part, shards in opened.items()
    }
    assert keys["val"] == {p.removesuffix(".png") for p in PATHS if set_of(p[:-4], 0.3) == "val"}
    assert opened["train"].classes == opened["val"].classes == ("cat", "dog")
    # More images: those that were there stay where they were.
    fill(images, ["cat/new.png", "elk/new.png"])
    pack_images(images, tmp_path / "more", options)
    for part, before in keys.items():
        shards = open_shards(tmp_path / "more" / part)
        assert {shards.key(n) for n in range(shards.num_samples)} >= before
    assert (tmp_path / "shards/val/contact_sheet.png").is_file()


def test_a_split_has_the_fraction_that_is_asked_for():
    for fraction in (0.01, 0.1, 0.5):
        count = sum(set_of(f"class/{number}", fraction) == "val" for number in range(20_000))
        assert abs(count - 20_000 * fraction) < 5 * (20_000 * fraction) ** 0.5


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "large.jpg": encode(photograph(300, 400), "JPEG", quality=95),
        "tall.png": encode(photograph(400, 200), "PNG"),
        "turned.jpg": encode(photograph(300, 400), "JPEG", exif=exif),
        "gray.png": encode(photograph(200, 300)[..., 0], "PNG"),
        "small.png": encode(photograph(90, 100), "PNG"),
        "cut.jpg": encode(photograph(300, 400), "JPEG")[:3000],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_larger_images_are_scaled_down_and_smaller_ones_stay(photographs: Path, tmp_path: Path):
    options = PackOptions(reencoding=Reencoding(short_side=100, quality=80))
    made = pack_images(photographs, tmp_path / "shards", options)
    assert made.refused == {"truncated": 1}
    samples = webdataset_samples(tmp_path / "shards")
    sizes = {
        key: Image.open(io.BytesIO(next(iter(files.values())))).size
        for key, files in samples.items()
    }
    assert sizes == {
        "large": (133, 100),
        "tall": (100, 200),
        "turned": (100, 133),
        "gray": (150, 100),
        "small": (100, 90),
    }
    assert samples["small"] == {"png": (photographs / "small.png").read_bytes()}
    assert Image.open(io.BytesIO(samples["gray"]["jpg"])).mode == "L"
    found = decode_image(samples["large"]["jpg"]).astype(float)
    expected = Image.open(photographs / "large.jpg").resize((133, 100), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(expected)).mean() < 6
    again = pack_images(photographs, tmp_path / "again", options, workers=2)
    assert again.num_images == 5
    assert everything(tmp_path / "again") == everything(tmp_path / "shards")


def test_statistics_and_contact_sheet_show_the_set(tmp_path: Path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = [
        rng.integers(0, 256, (20, 30 + n, 3), dtype=np.uint8) // (n % 3 + 1) for n in range(9)
    ]
    for number, image in enumerate(pixels):
        (folder / f"{number}.png").write_bytes(encode(image, "PNG"))
    (made,) = pack_images(folder, tmp_path / "shards", PackOptions(4096), workers=2).sets
    statistics = read_index(tmp_path / "shards").statistics
    assert statistics == made.statistics
    assert statistics is not None
    scaled = [image.reshape(-1, 3) / 255 for image in pixels]
    mean = np.mean([image.mean(axis=0) for image in scaled], axis=0)
    square = np.mean([(image**2).mean(axis=0) for image in scaled], axis=0)
    np.testing.assert_allclose(statistics.mean, mean, atol=1e-6)
    np.testing.assert_allclose(statistics.std, (square - mean**2) ** 0.5, atol=1e-6)
    assert statistics.num_images == 9
    sheet = Image.open(tmp_path / "shards/contact_sheet.png")
    # Two rows of eight, each with a caption.
    assert sheet.size == (8 * 134 + 6, 2 * 150 + 6)


def test_statistics_of_a_large_set_are_of_an_even_sample(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1300):
        pixels = np.full((4, 4, 3), number % 200, np.uint8)
        (folder / f"{number}.png").write_bytes(encode(pixels, "PNG"))
    (made,) = pack_images(folder, tmp_path / "shards").sets
    assert made.statistics is not None
    assert made.statistics.num_images == 434  # every third
    assert made.statistics.mean[0] == pytest.approx((np.arange(1300) % 200).mean() / 255, rel=0.05)


def begin_pack(images: Path, shards: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ssl_vit", "shards", "pack", str(images), str(shards), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "images"
    files = [encode(photograph(60, 80, seed), "JPEG") for seed in range(8)]
    for number in range(1200):
        target = folder / f"class{number % 3}" / f"{number:04d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[number % 8] if number % 100 else b"no image")
    return folder


@pytest.mark.parametrize(("workers", "later"), [("2", "1"), ("1", "2"), ("2", "4")])
def test_a_killed_pack_goes_on_and_ends_like_an_unbroken_one(
    workers: str, later: str, many: Path, tmp_path: Path
):
    size = ("--shard-bytes", "60kB")
    assert begin_pack(many, tmp_path / "whole", *size, "--workers", "1").wait() == 0
    whole = everything(tmp_path / "whole")
    shards = tmp_path / "killed"
    process = begin_pack(many, shards, *size, "--workers", workers)
    while len(list(shards.glob("shard-*.tar"))) < 6:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_ino for path in shards.glob("shard-*.tar")}
    assert not (shards / "index.json").exists()
    time.sleep(0.3)  # its workers end with it, and write no more
    assert {path.name for path in shards.glob("shard-*.tar")} - set(finished) == set()
    assert begin_pack(many, shards, *size, "--workers", later).wait() == 0
    assert everything(shards) == whole
    # Finished shards were not written again; each worker may have had one whose part was not noted.
    parts = [name for name, inode in finished.items() if (shards / name).stat().st_ino == inode]
    assert len(parts) >= len(finished) - int(workers)


def test_a_killed_pack_of_other_options_is_not_thrown_away_unasked(many: Path, tmp_path: Path):
    shards = tmp_path / "shards"
    process = begin_pack(many, shards, "--shard-bytes", "60kB", "--workers", "1")
    while len(list(shards.glob("shard-*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match=r"shards of an interrupted pack with other options"):
        pack_images(many, shards, PackOptions(90_000))
    made = pack_images(many, shards, PackOptions(90_000), overwrite=True)
    assert made.num_resumed == 0
    pack_images(many, tmp_path / "clean", PackOptions(90_000))
    assert everything(shards) == everything(tmp_path / "clean")


def test_two_packs_do_not_write_into_one_folder(many: Path, tmp_path: Path):
    shards = tmp_path / "shards"
    process = begin_pack(many, shards, "--shard-bytes", "30kB", "--workers", "1")
    while not list(shards.glob("shard-*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    with pytest.raises(UserError, match="another process is writing"):
        pack_images(many, shards, PackOptions(30_000))
    assert process.wait() == 0
    assert check_shards(str(shards), decode=False, workers=1)[1] == []


def test_a_disk_that_fills_up_is_said_and_the_same_command_goes_on(many: Path, tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, to make a small file system")
    try:
        (place / "others").write_bytes(bytes(10))
        with pytest.raises(UserError, match=r"has 3\.1"):
            pack_images(many, place / "shards", PackOptions(60_000))
        options = PackOptions(60_000)
        import ssl_vit_data_prep.pack as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "check_space", lambda folder, num_bytes: None)
            with pytest.raises(UserError, match="No space left on device") as caught:
                pack_images(many, place / "shards", options)
        assert "run the same command again to resume" in caught.value.remedy
        assert not (place / "shards/index.json").exists()
        subprocess.run(["mount", "-o", "remount,size=60m", str(place)], check=True)
        assert pack_images(many, place / "shards", options).num_resumed > 5
        pack_images(many, tmp_path / "clean", options)
        assert everything(place / "shards") == everything(tmp_path / "clean")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_other_labels_are_another_pack(images: Path, tmp_path: Path):
    manifest, shards = tmp_path / "list.csv", tmp_path / "shards"
    options = PackOptions(2_000, classes="manifest", manifest=manifest)
    manifest.write_text("path,label\n" + "".join(f"{path},x\n" for path in PATHS))
    pack_images(images, shards, options)
    # As a kill before the last step would have left it.
    (shards / "index.json").unlink()
    parts = shards / ".unfinished"
    manifest.write_text(
        "path,label\n" + "".join(f"{path},x\n" for path in PATHS[:-1]) + f"{PATHS[-1]},y\n"
    )
    parts.mkdir()
    (parts / "plan").write_text("pack of other labels")
    (parts / "shard-000000.npz").write_bytes(b"")
    with pytest.raises(UserError, match="with other options"):
        pack_images(images, shards, options)


def test_labels_and_columns_decide_whether_a_killed_pack_goes_on():
    from ssl_vit_data_prep.plan import Classes, digest

    base = Classes(("a", "b"), {"1.jpg": 0, "2.jpg": 1}, {"1.jpg": {"year": 1990}})
    others = [
        Classes(("a", "b"), {"1.jpg": 1, "2.jpg": 0}, base.extras),
        Classes(base.names, base.labels, {"1.jpg": {"year": 1991}}),
    ]
    digests = {digest((), (PackOptions(), classes)) for classes in [base, *others]}
    assert len(digests) == 3


def test_a_disk_without_room_costs_no_set_that_is_there(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ssl_vit_data_prep import target

    pack_images(images, tmp_path / "shards")
    before = everything(tmp_path / "shards")
    monkeypatch.setattr(
        target.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 0})()
    )
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    (images / "cat/large.png").write_bytes(encode(noise, "PNG"))
    with pytest.raises(UserError, match="of free space"):
        pack_images(images, tmp_path / "shards", overwrite=True)
    assert everything(tmp_path / "shards") == before


def test_half_a_character_in_a_manifest_is_said(images: Path, tmp_path: Path):
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"path": "cat/00.png", "label": "x", "note": "\\ud800"}\n')
    with pytest.raises(UserError, match="line 1, has an incomplete character"):
        read_manifest(manifest, images)
