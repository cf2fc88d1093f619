"""Shards that others wrote: by plain `tar` and webdataset's own writer, indexed and resharded."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.index_file import read_index
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_data_prep.check import check_shards
from ssl_vit_data_prep.index import IndexOptions, index_shards
from ssl_vit_data_prep.reshard import reshard
from tests.command_line import ssl_vit
from tests.data_prep.test_pack import everything, fill, pack, picture, webdataset_samples
from tests.faulty_server import serving

NUM_SAMPLES = 30


def write_by_webdataset(folder: Path, labels: list[object] | None = None) -> dict[str, dict]:
    """img2dataset's layout (jpg, json, txt), with `.cls` where there are labels."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = {}
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=8, verbose=0) as writer:
        for number in range(NUM_SAMPLES):
            sample: dict[str, object] = {
                "__key__": f"{number:09d}",
                "jpg": picture(number, "jpg"),
                "json": {"url": f"https://host/{number}.jpg", "license": number % 2, "width": 24},
                "txt": f"a caption of {number}",
            }
            if labels:
                sample["cls"] = str(labels[number % len(labels)])
            writer.write(sample)
            samples[f"{number:09d}"] = sample
    return samples


def index(folder: Path | str, out: Path | None = None, **options: object) -> Path:
    chosen = IndexOptions(**options)  # type: ignore[arg-type] - the test's own
    return index_shards([str(folder)], out, chosen, workers=2).folder


def test_shards_of_webdatasets_writer_are_indexed(tmp_path: Path):
    samples = write_by_webdataset(tmp_path / "shards", labels=[0, 2, 1])
    folder = index(tmp_path / "shards")
    shards = open_shards(folder)
    assert shards.num_samples == NUM_SAMPLES
    for number in range(NUM_SAMPLES):
        sample = samples[shards.key(number)]
        assert shards.read(number) == sample["jpg"]
        assert str(shards.labels[number]) == sample["cls"]
    assert shards.classes == ("0", "1", "2")
    assert read_index(folder).statistics is None
    assert check_shards(str(folder), decode=True, workers=1)[1] == []


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar"])
def test_shards_of_plain_tar_are_indexed(form: str, tmp_path: Path):
    long = "a long folder name " * 7
    paths = [f"cat/{n}.jpg" for n in range(5)] + ["dog/ü/x.PNG", f"{long}/y.jpeg"]
    contents = fill(tmp_path / "images", paths if form != "ustar" else paths[:6])
    (tmp_path / "images/cat/0.cls").write_text("7\n")
    (tmp_path / "shards").mkdir()
    subprocess.run(
        ["tar", f"--format={form}", "--sort=name", "-cf", tmp_path / "shards/a.tar", "."],
        cwd=tmp_path / "images",
        check=True,
    )
    shards = open_shards(index(tmp_path / "shards"))
    found = {shards.key(n): shards.read(n) for n in range(shards.num_samples)}
    assert found == {f"./{path.rpartition('.')[0]}": data for path, data in contents.items()}
    labels = {shards.key(n): int(shards.labels[n]) for n in range(shards.num_samples)}
    assert labels["./cat/0"] == 0
    assert set(labels.values()) == {0, -1}
    assert shards.classes == ("7",)
    assert check_shards(str(tmp_path / "shards"), decode=True, workers=1)[1] == []


def test_labels_come_from_a_field_or_are_names(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards", labels=["wolf", "cat"])
    named = open_shards(index(tmp_path / "shards", tmp_path / "named"))
    assert named.classes == ("cat", "wolf")
    assert [named.classes[label] for label in named.labels[:4]] == ["wolf", "cat", "wolf", "cat"]
    assert check_shards(str(tmp_path / "named"), decode=False, workers=1)[1] == []
    of_field = index(tmp_path / "shards", tmp_path / "field", label_field="license")
    assert open_shards(of_field).classes == ("0", "1")  # the `.cls` beside it does not count
    assert check_shards(str(of_field), decode=False, workers=1)[1] == []
    order = index(tmp_path / "shards", tmp_path / "order", classes=("wolf", "dog", "cat"))
    assert open_shards(order).labels[:2].tolist() == [0, 2]
    with pytest.raises(UserError, match="label wolf is not one of the 2 classes"):
        index(tmp_path / "shards", tmp_path / "wrong", classes=("dog", "cat"))


def test_every_image_of_a_sample_counts_unless_endings_are_named(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/x.tar", "w") as tar:
        for number in range(4):
            for ending in ("left.jpg", "right.jpg", "depth.png", "json"):
                path = tmp_path / "file"
                path.write_bytes(
                    picture(number, ending.rpartition(".")[2]) if ending != "json" else b"{}"
                )
                tar.add(path, f"{number}.{ending}")
    made = index_shards([str(tmp_path / "shards")], None, IndexOptions(), 1)
    assert made.index.num_samples == 12
    assert made.num_several == 4
    assert made.endings == {"left.jpg": 4, "right.jpg": 4, "depth.png": 4}
    for endings, count in [(("left.jpg",), 4), (("jpg",), 8), (("png", "right.jpg"), 8)]:
        folder = index(tmp_path / "shards", tmp_path / "-".join(endings), endings=endings)
        shards = open_shards(folder)
        assert shards.num_samples == count
        assert check_shards(str(folder), decode=True, workers=1)[1] == []
    different = {open_shards(tmp_path / name).fingerprint for name in ("left.jpg", "jpg", "shards")}
    assert len(different) == 3  # the same shards, other samples
    with pytest.raises(UserError, match="no images with the ending gif") as caught:
        index(tmp_path / "shards", tmp_path / "none", endings=("gif",))
    assert "--endings" in caught.value.remedy


def test_remote_shards_are_indexed_through_faults_without_a_copy(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards", labels=[1, 0])
    local = open_shards(index(tmp_path / "shards", tmp_path / "local"))
    with serving(tmp_path / "shards", ["500", "cut", "refuse"]) as server:
        urls = f"{server.url}{{00000..00003}}.tar"
        folder = index(urls, tmp_path / "remote")
        assert not list((tmp_path / "remote").glob("*.tar"))
        remote = open_shards(folder, ShardCache(tmp_path / "cache"))
        assert remote.fingerprint == local.fingerprint
        assert [remote.read(n) for n in (0, 15, 29)] == [local.read(n) for n in (0, 15, 29)]


def test_a_set_of_ours_can_be_indexed_anew(tmp_path: Path):
    fill(tmp_path / "images", [f"{c}/{n}.png" for c in "ab" for n in range(6)])
    pack(tmp_path / "images", tmp_path / "shards", shard_bytes=8_000)
    before = read_index(tmp_path / "shards")
    again = index(tmp_path / "shards", tmp_path / "again")
    after = open_shards(again)
    assert [s.sha256 for s in after.shards] == [s.sha256 for s in before.shards]
    assert after.fingerprint == open_shards(tmp_path / "shards").fingerprint


def test_what_cannot_be_indexed_is_said(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"this is no tar" * 100)
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty").mkdir()
    for source, problem in [
        (tmp_path / "a.tar", "cannot read shard"),
        (tmp_path / "b.tar.gz", "is compressed"),
        (tmp_path / "empty", "no shards at"),
        (tmp_path / "missing.tar", "no shards at"),
        (f"{tmp_path}/{{a,a}}.tar", "given twice"),
        ("http://127.0.0.1:1/x.tar", "are not in one local folder"),
        ("pipe:cat x.tar", "run a shell command"),
    ]:
        with pytest.raises(UserError, match=problem):
            index(source)
    assert not (tmp_path / "index.json").exists()


def test_an_index_that_is_there_is_not_replaced_unasked(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards")
    index(tmp_path / "shards")
    with pytest.raises(UserError, match=r"already has an index\.json"):
        index(tmp_path / "shards")
    index_shards([str(tmp_path / "shards")], None, IndexOptions(), 1, overwrite=True)


def test_empty_images_in_foreign_shards_are_refused(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with tarfile.open(tmp_path / "shards/x.tar", "w") as tar:
        tar.add(tmp_path / "file", "0.jpg")
        (tmp_path / "file").write_bytes(picture(1, "jpg"))
        tar.add(tmp_path / "file", "1.jpg")
    made = index_shards([str(tmp_path / "shards")], None, IndexOptions(), 1)
    assert made.refused == {"empty": 1}
    assert made.index.num_samples == 1
    line = json.loads((tmp_path / "shards/refused.jsonl").read_text())
    assert line["path"] == "x.tar/0.jpg"


# --- reshard ---


def test_resharding_moves_whole_samples_in_a_new_order(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards", labels=[0, 1, 2])
    folder = index(tmp_path / "shards")
    before = webdataset_by_key(tmp_path / "shards")
    made = reshard(str(folder), tmp_path / "new", 0, 3, seed=1, workers=2)
    assert [shard.num_samples for shard in made.shards] == [10, 10, 10]
    assert webdataset_by_key(tmp_path / "new") == before
    old, new = open_shards(folder), open_shards(tmp_path / "new")
    labels = {old.key(n): int(old.labels[n]) for n in range(NUM_SAMPLES)}
    assert {new.key(n): int(new.labels[n]) for n in range(NUM_SAMPLES)} == labels
    assert new.classes == old.classes
    keys = [new.key(n) for n in range(NUM_SAMPLES)]
    assert keys != sorted(keys)
    assert check_shards(str(tmp_path / "new"), decode=True, workers=1)[1] == []
    reshard(str(folder), tmp_path / "again", 0, 3, seed=1, workers=1)
    assert everything(tmp_path / "again") == everything(tmp_path / "new")
    other = reshard(str(folder), tmp_path / "other", 0, 3, seed=2, workers=1)
    assert other.shards != made.shards


def webdataset_by_key(folder: Path) -> dict[str, dict[str, bytes]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    reader = webdataset.WebDataset(urls, shardshuffle=False)
    return {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in reader
    }


def test_resharding_to_a_size_keeps_it_and_the_statistics(tmp_path: Path):
    fill(tmp_path / "images", [f"{c}/{n}.png" for c in "ab" for n in range(10)])
    pack(tmp_path / "images", tmp_path / "shards")
    made = reshard(str(tmp_path / "shards"), tmp_path / "new", 12_000, 0, seed=0, workers=1)
    assert len(made.shards) > 2
    assert all(shard.num_bytes <= 12_000 + 1_024 + 10_240 for shard in made.shards)
    assert made.statistics == read_index(tmp_path / "shards").statistics
    assert webdataset_samples(tmp_path / "new") == webdataset_samples(tmp_path / "shards")


def test_resharding_keeps_samples_with_the_same_key_apart(tmp_path: Path):
    for part in ("a", "b"):
        write_by_webdataset(tmp_path / part)
        for path in (tmp_path / part).glob("*.tar"):
            path.rename(tmp_path / f"{part}-{path.name}")
    folder = index(f"{tmp_path}/?-*.tar")
    made = reshard(str(folder), tmp_path / "new", 0, 2, seed=0, workers=1)
    assert made.num_samples == 2 * NUM_SAMPLES
    samples = webdataset_by_key(tmp_path / "new")
    assert len(samples) == 2 * NUM_SAMPLES
    assert all(set(sample) == {"jpg", "json", "txt"} for sample in samples.values())


def test_a_damaged_shard_is_not_resharded(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards")
    folder = index(tmp_path / "shards")
    path = tmp_path / "shards/00002.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"00002\.tar is damaged"):
        reshard(str(folder), tmp_path / "new", 0, 2, seed=0, workers=2)
    assert not (tmp_path / "new/index.json").exists()


def test_resharding_into_a_set_is_refused_and_remote_sets_must_fit_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_VIT_CACHE", str(tmp_path / "cache"))
    write_by_webdataset(tmp_path / "shards")
    folder = index(tmp_path / "shards")
    for target, problem in [(folder, "already has a set"), (tmp_path, "has other files")]:
        with pytest.raises(UserError, match=problem):
            reshard(str(folder), target, 0, 2, seed=0, workers=1)
    with serving(folder) as server:
        made = reshard(server.url, tmp_path / "new", 0, 2, seed=0, workers=2)
        assert made.num_samples == NUM_SAMPLES
        from ssl_vit.data import cache

        monkeypatch.setattr(cache.ShardCache.__init__, "__defaults__", (None, 10, False, 8, print))
        with pytest.raises(UserError, match="more than the cache"):
            reshard(server.url, tmp_path / "newer", 0, 2, seed=0, workers=1)


def test_records_know_long_names_and_extended_headers(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    name = "n" * 150
    with tarfile.open(tmp_path / "shards/x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        path = tmp_path / "file"
        path.write_bytes(picture(0, "jpg"))
        tar.add(path, f"{name}.jpg")
    shards = open_shards(index(tmp_path / "shards"))
    assert shards.key(0) == name
    assert shards.read(0) == picture(0, "jpg")
    assert int(shards.record(0)["lead"]) > 512
    assert np.asarray(shards.labels).tolist() == [-1]


@pytest.mark.parametrize("place", [".", "train"])
def test_shards_are_not_written_over_those_that_are_read(place: str, tmp_path: Path):
    pack(fill_folder(tmp_path), tmp_path / "set" / place)
    before = everything(tmp_path / "set")
    with pytest.raises(UserError, match="the shards that are read are in"):
        reshard(str(tmp_path / "set" / place), tmp_path / "set", 0, 2, 0, 1, overwrite=True)
    assert everything(tmp_path / "set") == before


def fill_folder(tmp_path: Path) -> Path:
    fill(tmp_path / "images", [f"{n}.jpg" for n in range(12)])
    return tmp_path / "images"


def test_an_index_that_failed_gives_nobody_leave_to_delete(tmp_path: Path):
    shards = tmp_path / "shards"
    write_by_webdataset(shards)
    (shards / "00000.tar").rename(shards / "shard-000000.tar")
    with pytest.raises(UserError, match="no images with the ending ppm"):
        index(shards, endings=("ppm",))
    before = everything(shards)
    with pytest.raises(UserError, match="has other files"):
        pack(fill_folder(tmp_path), shards)
    assert everything(shards) == before
    assert not (shards / ".unfinished").exists()


def test_the_rest_of_a_damaged_tar_is_not_dropped_in_silence(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards")
    tar = tmp_path / "shards/00001.tar"
    data = tar.read_bytes()
    with tarfile.open(tar) as opened:
        member = opened.getmembers()[9]
    for damaged in (
        data[: member.offset] + b"\xff" * 512 + data[member.offset + 512 :],
        data[: member.offset],
        data[: member.offset + 200],
    ):
        tar.write_bytes(damaged)
        with pytest.raises(UserError, match=f"damaged at byte {member.offset:,}") as caught:
            index(tmp_path / "shards")
        assert "00001.tar" in caught.value.problem


def test_names_that_are_no_utf8_are_spelled_out(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3):
            data = picture(number, "jpg")
            info = tarfile.TarInfo(f"caf\udce9{number}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder = index(tmp_path / "shards")
    assert open_shards(folder).key(1) == "caf\\xe91"
    reshard(str(folder), tmp_path / "new", 0, 1, seed=0, workers=1)
    assert check_shards(str(tmp_path / "new"), decode=True, workers=1)[1] == []


def test_what_an_index_takes_check_takes(tmp_path: Path):
    shards = tmp_path / "shards"
    shards.mkdir()
    with webdataset.ShardWriter(str(shards / "%05d.tar"), verbose=0) as writer:
        for number in range(12):
            gif = io.BytesIO()
            Image.open(io.BytesIO(picture(number, "jpg"))).save(gif, "GIF")
            sample = {"jpg": picture(number, "jpg"), "gif": gif.getvalue(), "cls": f"{number:03d}"}
            writer.write({"__key__": f"{number:05d}", **sample})
    for endings in (("gif",), ("jpg",), ("gif", "jpg")):
        index_shards([str(shards)], None, IndexOptions(endings=endings), 1, overwrite=True)
        assert check_shards(str(shards), decode=True, workers=1)[1] == []


def test_a_label_field_that_no_sample_has_is_said(tmp_path: Path):
    write_by_webdataset(tmp_path / "shards")
    with pytest.raises(UserError, match="field nope"):
        index(tmp_path / "shards", label_field="nope")


def test_resharding_opens_few_tars_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ssl_vit_data_prep import reshard as module

    pack(fill_folder(tmp_path), tmp_path / "shards", shard_bytes=7_000)
    shards = open_shards(tmp_path / "shards")
    assert 3 <= len(shards.shards) < shards.num_samples
    monkeypatch.setattr(module, "_MOST_OPEN", 2)
    opened: list[str] = []
    plain = os.open

    def counting(path: str, flags: int) -> int:
        if str(path).endswith(".tar"):
            assert len(os.listdir("/proc/self/fd")) < before + 6
            opened.append(path)
        return plain(path, flags)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module.os, "open", counting)
    reshard(str(tmp_path / "shards"), tmp_path / "new", 0, 1, seed=0, workers=1)
    assert len(opened) > len(shards.shards)
    assert open_shards(tmp_path / "new").num_samples == shards.num_samples


def test_an_unfinished_pack_is_not_indexed_as_if_it_were_whole(tmp_path: Path):
    pack(fill_folder(tmp_path), tmp_path / "shards", shard_bytes=2_000)
    shards = tmp_path / "shards"
    (shards / "index.json").unlink()
    (shards / ".unfinished").mkdir()
    (shards / ".unfinished/plan").write_text("pack 0123")
    with pytest.raises(UserError, match="not complete: the pack") as caught:
        index(shards)
    assert "run that command again" in caught.value.remedy
    with pytest.raises(UserError, match="not complete"):
        open_shards(shards)


def test_tars_that_no_index_knows_are_mentioned(tmp_path: Path):
    pack(fill_folder(tmp_path), tmp_path / "shards")
    (tmp_path / "shards/shard-000099.tar").write_bytes(b"")
    done = ssl_vit("shards", "check", tmp_path / "shards")
    assert done.returncode == 0
    assert "1 tar in the same folder not in the index, such as shard-000099.tar" in done.stdout
    both = ("--num-shards", "2", "--shard-bytes", "1MB")
    assert (
        ssl_vit("shards", "reshard", tmp_path / "shards", tmp_path / "new", *both).returncode == 2
    )


def test_what_was_not_decoded_and_an_empty_set_are_said(tmp_path: Path):
    fill(tmp_path / "images", [f"{n}.jpg" for n in range(600)])
    words = ("--val-fraction", "0.0000001", "--workers", "1")
    done = ssl_vit("shards", "pack", tmp_path / "images", tmp_path / "shards", *words)
    assert done.returncode == 0, done.stderr
    assert "val is empty" in done.stdout
    assert "300 images were checked without decoding" in done.stdout
