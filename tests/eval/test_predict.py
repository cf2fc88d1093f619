"""`ssl-vit predict` on a folder and on shards."""

import csv
from pathlib import Path

import pytest
import torch

from ssl_vit.exports.loading import load_classifier
from tests.command_line import ssl_vit
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    shards = write_shards(folder, per_class=5)
    command = ("pretrain", "finetune_small_data", "--smoke", "--run", folder / "run")
    done = ssl_vit(*command, f"data.shards={shards}", "schedule.length=2", "schedule.warmup=1")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_image_of_a_folder_gets_a_class_or_a_reason(run: Path, tmp_path: Path) -> None:
    images = run.parent / "images"
    (images / "a" / "broken.png").write_text("not an image")
    try:
        done = ssl_vit("predict", run, images, "--out", tmp_path / "found.csv")
    finally:
        (images / "a" / "broken.png").unlink()
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "found.csv")
    assert [row["path"] for row in found] == sorted(row["path"] for row in found)
    bad = [row for row in found if row["problem"]]
    assert [Path(row["path"]).name for row in bad] == ["broken.png"]
    assert bad[0]["class"] == bad[0]["probability"] == ""
    assert "10 images" in done.stdout
    assert "1 could not be read" in done.stdout
    model = load_classifier(run)
    for row in found:
        if row["problem"]:
            continue
        with torch.no_grad():
            expected = model(model.preprocess(row["path"]))[0].softmax(dim=1)[0]
        assert row["class"] == model.classes[int(expected.argmax())]
        assert float(row["probability"]) == pytest.approx(float(expected.max()), abs=2e-6)


def test_shards_are_classified_by_key(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.csv"
    done = ssl_vit("predict", run, run.parent / "shards", "--out", out, "--batch-size", "3")
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert sorted(row["path"] for row in found) == sorted(
        f"{name}/{number:03d}" for name in "ab" for number in range(5)
    )


@pytest.mark.parametrize(
    ("images", "out", "problem"),
    [
        ("nothing", "x.csv", "nothing"),
        ("empty", "x.csv", "no image in"),
        ("shards", "missing/x.csv", "missing does not exist"),
        ("shards", "empty", "is a folder"),
        ("shards", "photo.png", "exists and is not a CSV file"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(
    images: str, out: str, problem: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").write_text("somebody's")
    source = run.parent / "shards" if images == "shards" else tmp_path / images
    done = ssl_vit("predict", run, source, "--out", tmp_path / out)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not (tmp_path / "x.csv").exists()


def test_one_image_is_enough(run: Path, tmp_path: Path) -> None:
    done = ssl_vit("predict", run, run.parent / "images/a/000.png", "--out", tmp_path / "x.csv")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "x.csv")) == 1
