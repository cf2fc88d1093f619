"""`ssl-vit eval classifier` on a classifier that was trained for a few steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.data.sources import open_shards
from ssl_vit.exports.folder import find_export
from ssl_vit.exports.loading import load_classifier
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_eval.confusion_picture import draw_confusion
from tests.command_line import ssl_vit
from tests.synthetic import write_images, write_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    shards = write_shards(folder)
    command = ("pretrain", "finetune_small_data", "--smoke", "--run", folder / "run")
    done = ssl_vit(*command, f"data.shards={shards}", "schedule.length=3", "schedule.warmup=1")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def packed(folder: Path, classes: tuple[str, ...] = ("a", "b")) -> Path:
    write_images(folder / "images", 6, classes)
    for file in (folder / "images").glob("*/*.png"):  # others than those it was trained on
        Image.open(file).rotate(180).save(file)
    pack_images(folder / "images", folder / "shards", PackOptions(40_000))
    return folder / "shards"


def read(run: Path) -> dict:
    (file,) = (run / "evals").glob("classifier_step_*.json")
    return json.loads(file.read_text())


def test_its_numbers_are_those_of_a_loop(run: Path, tmp_path: Path) -> None:
    shards = packed(tmp_path)
    done = ssl_vit("eval", "classifier", run, "--test", shards, "--crop-ratio", "1")
    assert done.returncode == 0, done.stderr
    model = load_classifier(run)
    hits, loss = 0, 0.0
    files = sorted((tmp_path / "images").glob("*/*.png"))
    for file in files:
        with torch.no_grad():
            logits = model(model.preprocess([file], size=None))[0][0]
        label = ("a", "b").index(file.parent.name)
        hits += int(logits.argmax()) == label
        loss -= float(logits.log_softmax(dim=0)[label])
    found = read(run)
    assert found["classes"] == ["a", "b"]
    assert found["accuracy"] == hits / 12
    assert found["test"]["num_images"] == 12
    assert np.sum(found["confusion_matrix"]) == 12
    assert found["log_loss"] == pytest.approx(loss / 12, rel=0.02)  # another crop's rounding
    assert "AUROC" in done.stdout
    assert "Always the test images' most frequent class: 50.0" in done.stdout
    (picture,) = (run / "evals").glob("classifier_step_*.png")
    assert Image.open(picture).size[0] > 80


def test_other_labels_change_numbers_and_nothing_else(run: Path, tmp_path: Path) -> None:
    """The test set has no way into the classifier."""
    before = (find_export(run) / "classifier.safetensors").read_bytes()
    results = []
    for name in ("first", "second"):
        shards = packed(tmp_path / name)
        if name == "second":
            for number in range(3):  # three images change their class
                pair = [tmp_path / name / f"images/{each}/{number:03d}.png" for each in "ab"]
                contents = [file.read_bytes() for file in pair]
                for file, content in zip(pair, reversed(contents), strict=True):
                    file.write_bytes(content)
            shutil.rmtree(shards)
            pack_images(tmp_path / name / "images", shards, PackOptions(40_000))
        assert ssl_vit("eval", "classifier", run, "--test", shards).returncode == 0
        results.append(read(run))
    predicted = [np.sum(each["confusion_matrix"], axis=0).tolist() for each in results]
    assert predicted[0] == predicted[1]
    assert (find_export(run) / "classifier.safetensors").read_bytes() == before


def test_classes_that_it_lacks_are_refused_or_left_out(run: Path, tmp_path: Path) -> None:
    shards = packed(tmp_path, ("b", "c"))
    command = ("eval", "classifier", run, "--test", shards)
    done = ssl_vit(*command)
    assert done.returncode == 2
    assert "6 of 12 test images are of classes that the classifier lacks: c" in done.stderr
    done = ssl_vit(*command, "--known-classes-only")
    assert done.returncode == 0, done.stderr
    assert "6 test images of other classes (c) are left out" in done.stdout
    assert read(run)["test"]["num_images"] == 6
    assert read(run)["auroc"] is None  # of one class alone


def test_the_training_set_is_no_test_set(run: Path) -> None:
    shards = run.parent / "shards"
    done = ssl_vit("eval", "classifier", run, "--test", shards)
    assert done.returncode == 0
    assert "trained on these very shards" in done.stdout
    assert open_shards(str(shards)).num_samples == 48


def test_a_run_without_a_classifier_is_refused(tmp_path: Path) -> None:
    done = ssl_vit("eval", "classifier", tmp_path, "--test", "SHARDS")
    assert done.returncode == 2
    assert "no export at" in done.stderr


def test_many_classes_are_drawn_without_names() -> None:
    few = draw_confusion(np.array([[9, 1], [0, 10]]), ["good", "a class with a very long name"])
    many = draw_confusion(np.eye(100, dtype=int), [f"class {number}" for number in range(100)])
    assert few.getpixel((few.width - 14, few.height - 14)) == (8, 48, 107)
    assert many.width < 900


def test_names_that_the_font_cannot_draw_become_plain_ones_or_numbers() -> None:
    counts = np.array([[9, 1], [0, 10]])
    drawn, plain = (
        draw_confusion(counts, ["Café\ncrème", "猫"]),
        draw_confusion(counts, ["Cafe creme", "class 1"]),
    )
    assert drawn.tobytes() == plain.tobytes()
