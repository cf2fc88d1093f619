"""Images of several classes, or of none: from a manifest to predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ssl_vit.exports.folder import find_export, read_classifier_info
from ssl_vit_eval.multi_label import measure_multi_label
from tests.command_line import ssl_vit


def test_numbers_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((60, 3)) < (0.2, 0.5, 0.8)
    chances = np.clip(0.4 * labels + 0.6 * rng.random((60, 3)), 0, 1)
    found = measure_multi_label(chances, labels, ("a", "b", "c"))
    said = chances >= 0.5
    assert found["mean_average_precision"] == pytest.approx(
        average_precision_score(labels, chances, average="macro")
    )
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, chances, average="macro"))
    for average in ("macro", "micro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(labels, said, average=average))
    assert found["all_right"] == pytest.approx((labels == said).all(axis=1).mean())
    assert [each["support"] for each in found["per_class"]] == labels.sum(axis=0).tolist()


def write_set(folder: Path, count: int, seed: int) -> Path:
    """Images whose red, green and blue are each bright or dark, named by what is bright."""
    rng = np.random.default_rng(seed)
    lines = ["path,label"]
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        bright = rng.random(3) < 0.5
        color = (40 + 160 * bright + rng.integers(0, 40, 3)).astype(np.uint8)
        Image.fromarray(np.tile(color, (40, 40, 1))).save(folder / f"images/{number:03d}.png")
        names = [name for name, is_bright in zip("rgb", bright, strict=True) if is_bright]
        lines.append(f"{number:03d}.png,{';'.join(names) or ';'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    command = ("shards", "pack", folder / "images", folder / "shards")
    done = ssl_vit(*command, "--manifest", folder / "list.csv")
    assert done.returncode == 0, done.stderr
    return folder / "shards"


def test_from_a_manifest_to_predictions(tmp_path: Path) -> None:
    train, test = write_set(tmp_path / "train", 96, 0), write_set(tmp_path / "test", 24, 1)
    run = tmp_path / "run"
    words = ("objective.label_separator=;", "objective.loss=binary", "objective.pooling=cls")
    words += ("objective.mixup=0", "objective.cutmix=0", "schedule.length=60", "schedule.warmup=5")
    words += ("optimizer.base_learning_rate=3e-3", "objective.layer_decay=1", "log.every_steps=20")
    command = ("pretrain", "finetune_small_data", "--smoke", "--run", run)
    done = ssl_vit(*command, f"data.shards={train}", *words)
    assert done.returncode == 0, done.stderr
    assert "3 classes: b " in done.stderr
    assert "validation: mean average precision" in done.stderr
    info = read_classifier_info(find_export(run))
    assert (info.classes, info.label_separator) == (("b", "g", "r"), ";")
    evaluate = ("eval", "classifier", run, "--test", test, "--train", train)
    done = ssl_vit(*evaluate)
    assert done.returncode == 0, done.stderr
    assert "mean average precision %" in done.stdout
    assert "No frozen backbone beside it: linear probe and k-NN support one" in done.stdout
    (file,) = (run / "evals").glob("classifier_step_*.json")
    found = json.loads(file.read_text())
    assert found["mean_average_precision"] > 0.9  # colors are easy
    done = ssl_vit("predict", run, tmp_path / "test/images", "--out", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    wanted = dict(csv.reader((tmp_path / "test/list.csv").open()))
    right = 0
    for row in rows:
        said = {*filter(None, row["class"].split(";"))}
        assert len([*filter(None, row["probability"].split(";"))]) == len(said)
        right += said == {*filter(None, wanted[Path(row["path"]).name].split(";"))}
    assert right == found["num_all_right"]


def test_test_images_of_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    train = write_set(tmp_path / "train", 24, 0)
    write_set(tmp_path / "other", 12, 1)
    lines = (tmp_path / "other/list.csv").read_text().replace("g", "x").replace("pnx", "png")
    (tmp_path / "other/list.csv").write_text(lines)
    command = ("shards", "pack", tmp_path / "other/images", tmp_path / "other/named")
    assert ssl_vit(*command, "--manifest", tmp_path / "other/list.csv").returncode == 0
    run, words = tmp_path / "run", ("objective.label_separator=;", "objective.loss=binary")
    own = f"objective.validation={tmp_path / 'other/named'}"
    command = ("pretrain", "finetune_small_data", "--smoke", "--run", run)
    done = ssl_vit(*command, f"data.shards={train}", *words, own)
    assert done.returncode == 2
    assert "has images of x, and" in done.stderr
    short = ("schedule.length=2", "schedule.warmup=1")
    done = ssl_vit(*command, f"data.shards={train}", *words, *short)
    assert done.returncode == 0, done.stderr
    done = ssl_vit("eval", "classifier", run, "--test", tmp_path / "other/named")
    assert done.returncode == 2
    assert "are of classes that the classifier lacks: x" in done.stderr
