"""What stands in a result: numbers that anyone can check, and nothing wrong without a word."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ssl_vit.data.index_file import SAMPLE_RECORD, Index, read_index, records_digest, write_index
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import read_export_info, write_export
from ssl_vit.models.vit import VisionTransformer
from ssl_vit_eval.commands import app
from ssl_vit_eval.metrics import wilson_interval
from ssl_vit_eval.report import PIXELS, PRETRAINED
from tests.eval.conftest import CLASSES, colored_image, png, write_shards

TRAIN_LABELS = [0, 1, 2, 2] * 15
TEST_LABELS = [0, 1, 2, 2, 1] * 6


def evaluate(protocol: str, run: Path, train: Path, test: Path, *words: str) -> str:
    command = [protocol, str(run), "--train", str(train), "--test", str(test), "--workers", "0"]
    outcome = CliRunner().invoke(app, [*command, *words], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def strict(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def result(run: Path, protocol: str = "knn") -> dict[str, Any]:
    return strict((run / "evals" / f"{protocol}_step_00000007.json").read_text())


@pytest.fixture
def train(make_shards) -> Path:
    return make_shards("train", TRAIN_LABELS, seed=1)


@pytest.fixture
def test(make_shards) -> Path:
    return make_shards("test", TEST_LABELS, seed=2)


@pytest.fixture
def pictures(tmp_path: Path):
    """Writes a set of given pixels, labels and classes."""

    def write(name: str, pixels: list[np.ndarray], labels: list[int], classes=CLASSES) -> Path:
        write_shards(tmp_path / name, [png(each) for each in pixels], labels, classes)
        return tmp_path / name

    return write


def rename_classes(shards: Path, classes: tuple[str, ...], labels: list[int] | None = None) -> None:
    """Index a set again with other names, and other numbers where they are given."""
    index, records = read_index(shards), np.load(shards / "samples.npy")
    if labels is not None:
        records = records.astype(SAMPLE_RECORD)
        records["label"] = labels
    (shard,) = index.shards
    shard = replace(shard, records_sha256=records_digest(records))
    write_index(shards, Index((shard,), classes, None), [records])


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_every_accuracy_has_its_interval_and_scores_by_class(run_folder, train, test, protocol):
    evaluate(protocol, run_folder, train, test)
    found = result(run_folder, protocol)
    assert found["classes"] == list(CLASSES)
    assert [each["images"] for each in found["train"]["images_per_class"]] == [15, 15, 30]
    assert [each["images"] for each in found["test"]["images_per_class"]] == [6, 12, 12]
    for row in found["rows"].values():
        matrix = np.array(row["confusion_matrix"])
        assert matrix.sum(axis=1).tolist() == [6, 12, 12]
        assert row["accuracy"] == np.trace(matrix) / 30
        assert row["interval_95"] == list(wilson_interval(int(np.trace(matrix)), 30))
        recalls = np.diag(matrix) / [6, 12, 12]
        assert [each["recall"] for each in row["per_class"]] == recalls.tolist()
        assert row["balanced_accuracy"] == pytest.approx(recalls.mean())
        scores = [each["f1"] for each in row["per_class"]]
        assert row["macro_f1"] == pytest.approx(np.mean(scores))
        for kind in row["kinds"].values():
            for by_k in kind.get("by_k", {}).values():
                right = round(by_k["accuracy"] * 30)
                assert by_k["interval_95"] == list(wilson_interval(right, 30))


def test_many_classes_are_listed_worst_first_and_counted(run_folder, pictures):
    rng = np.random.default_rng(0)
    names = tuple(f"class{number:02d}" for number in range(25))
    labels = [*range(25)] * 4

    def draw() -> list[np.ndarray]:
        """Every class has a brightness of its own, nearly."""
        noise = rng.integers(0, 120, (len(labels), 40, 52, 3), dtype=np.uint8)
        return [each + np.uint8(2 * label) for each, label in zip(noise, labels, strict=True)]

    train, test = pictures("train", draw(), labels, names), pictures("test", draw(), labels, names)
    output = evaluate("knn", run_folder, train, test, "--k", "1")
    listed = [line for line in output.splitlines() if line.startswith("│ class")]
    assert "the 20 of 25 with the lowest recall" in output
    assert len(listed) == 20
    shown = [float(line.split("│")[3].split()[0]) for line in listed]
    scores = result(run_folder)["rows"][PRETRAINED]["per_class"]
    expected = sorted(100 * each["recall"] for each in scores)[:20]
    assert shown[0] < shown[-1]
    assert shown == pytest.approx(expected, abs=0.05)


def test_the_order_of_a_tests_classes_does_not_matter(run_folder, train, test):
    evaluate("knn", run_folder, train, test)
    expected = result(run_folder)
    rename_classes(
        test, ("red ", "unused", "blue", "green"), [[2, 3, 0][each] for each in TEST_LABELS]
    )
    output = evaluate("knn", run_folder, train, test)
    assert "'red' = 'red '" in output
    other = next((run_folder / "evals").glob("*_on_*"))
    assert strict(other.read_text())["rows"] == expected["rows"]


def test_classes_without_images_change_no_number(run_folder, train, test):
    evaluate("linear", run_folder, train, test, "--epochs", "5")
    expected = result(run_folder, "linear")["rows"]
    rename_classes(train, ("x", "blue", "y", "green", "red"), [[1, 3, 4][i] for i in TRAIN_LABELS])
    evaluate("linear", run_folder, train, test, "--epochs", "5")
    other = next((run_folder / "evals").glob("*_on_*"))
    assert strict(other.read_text())["rows"] == expected


def test_a_result_of_other_class_names_is_not_replaced(run_folder, train, test):
    evaluate("knn", run_folder, train, test)
    for names in (("b", "g", "r"), ("one", "two", "three"), ("b", "g", "r")):
        rename_classes(train, names)
        rename_classes(test, names)
        evaluate("knn", run_folder, train, test)
    found = [strict(file.read_text()) for file in (run_folder / "evals").iterdir()]
    assert sorted(each["classes"] for each in found) == [
        ["b", "g", "r"],
        ["blue", "green", "red"],
        ["one", "two", "three"],
    ]


def test_an_earlier_result_with_other_settings_is_replaced_and_that_is_said(
    run_folder, train, test
):
    assert "Replaced an earlier result" not in evaluate("knn", run_folder, train, test)
    assert "Replaced an earlier result" not in evaluate("knn", run_folder, train, test)
    assert "Replaced an earlier result with other settings" in evaluate(
        "knn", run_folder, train, test, "--k", "5"
    )
    assert result(run_folder)["protocol"]["k"] == [5]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_test_images_that_are_also_in_train_are_counted_and_said(run_folder, pictures, workers):
    rng = np.random.default_rng(0)
    seen = [colored_image(label, rng) for label in TRAIN_LABELS]
    fresh = [colored_image(label, rng) for label in TEST_LABELS]
    black = np.zeros((40, 52, 3), np.uint8)
    # Outside of the crop: its first row is not looked at.
    edged = seen[2].copy()
    edged[0] = 0
    near = seen[3].copy()
    near[20, 20] ^= 1
    train = pictures("train", [*seen, black, black], [*TRAIN_LABELS, 0, 0])
    test = pictures(
        "test", [*fresh, seen[0], seen[1], edged, near, black], [*TEST_LABELS, 0, 2, 2, 2, 1]
    )
    output = evaluate("knn", run_folder, train, test, "--workers", workers)
    found = result(run_folder)
    assert found["test_images_in_train"]["count"] == 4
    assert found["test_images_in_train"]["of_one_color"] == 1
    assert found["test_images_in_train"]["of_another_class_in_train"] == 2
    assert "- 4 of 35 test images are also in train, with identical pixels" in output
    assert "But 4 of 35 test images are also in train (11.4 %)" in found["verdict"]
    assert "on the other 31 test images it is " in found["verdict"]


def test_few_repeated_images_leave_the_verdict_alone(run_folder, pictures):
    rng = np.random.default_rng(0)
    seen = [colored_image(label, rng) for label in TRAIN_LABELS]
    labels = [0, 1, 2] * 33
    fresh = [colored_image(label, rng) for label in labels]
    train = pictures("train", seen, TRAIN_LABELS)
    test = pictures("test", [*fresh, seen[0]], [*labels, 0])
    output = evaluate("knn", run_folder, train, test)
    assert "- 1 of 100 test images are also in train" in output
    assert "also in train" not in result(run_folder)["verdict"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_features_that_are_not_finite_are_refused_by_name(run_folder, train, test, config, value):
    export = run_folder / "exports" / "step_00000009"
    weights = VisionTransformer(config).state_dict()
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], value)
    info = read_export_info(run_folder).model_copy(update={"step": 9})
    write_export(export, {"backbone": weights}, info)
    for protocol in ("knn", "linear"):
        with pytest.raises(
            UserError, match=r"pre-trained features of 60 of 60 .*image0000"
        ) as caught:
            evaluate(protocol, run_folder, train, test)
        assert "\n" not in str(caught.value)
    assert not list((run_folder / "evals").iterdir())


def test_one_image_of_each_class(run_folder, make_shards):
    names = tuple("abcdefghijkl")
    train, test = (
        make_shards(name, list(range(12)), seed, names)
        for name, seed in (("train", 1), ("test", 2))
    )
    evaluate("knn", run_folder, train, test, "--k", "1,3")
    assert result(run_folder)["protocol"]["k"] == [1, 3]
    with pytest.raises(UserError, match=r"no class of .*train has two labeled images") as caught:
        evaluate("linear", run_folder, train, test)
    assert "eval knn" in caught.value.remedy
    # One class with two images is enough to choose by, and how little that is, is said.
    more = make_shards("more", [*range(12), 0], 3, names)
    output = evaluate("linear", run_folder, more, test, "--epochs", "2")
    assert "a held-out tenth of train (1 image)" in output
    assert "Train classes with a single image" in output
    strict((run_folder / "evals/linear_step_00000007.json").read_text())


def test_a_k_is_tried_as_it_is_given(run_folder, train, test):
    output = evaluate("knn", run_folder, train, test, "--k", "20, 3,3")
    assert "left out" not in output
    kinds = result(run_folder)["rows"][PIXELS]["kinds"]
    assert list(kinds["pixels"]["accuracy_by_k"]) == ["3", "20"]


@pytest.mark.parametrize("text", ["x", "0", "-1", "1.5", "5,", "", "5 20", "1e2", "٣"])
def test_a_k_that_is_no_list_of_numbers_is_refused(run_folder, train, test, text):
    with pytest.raises(UserError, match="is not a list of whole numbers") as caught:
        evaluate("knn", run_folder, train, test, "--k", text)
    assert "--k 5,20" in caught.value.remedy


def test_a_k_beyond_the_train_set_is_refused(run_folder, train, test):
    with pytest.raises(UserError, match=r"--k 61 is too large: .* has 60 labeled images") as caught:
        evaluate("knn", run_folder, train, test, "--k", "5,61")
    assert caught.value.remedy == "use at most 60"
    assert evaluate("knn", run_folder, train, test, "--k", "60")


def test_a_small_train_set_will_do_for_a_small_k(run_folder, make_shards, test):
    few = make_shards("few", [0, 1, 2], seed=4)
    with pytest.raises(UserError, match="has 3 labeled images, at least 10 are needed"):
        evaluate("knn", run_folder, few, test)
    assert "k=1" in evaluate("knn", run_folder, few, test, "--k", "1")


def test_unknown_classes_are_left_out_if_asked(run_folder, train, make_shards):
    test = make_shards("test", [*TEST_LABELS, 3], 2, (*CLASSES, "violet"))
    with pytest.raises(UserError, match=r"1 of 31 test images .*only in test: violet \(1\)"):
        evaluate("knn", run_folder, train, test)
    assert "violet (1)" in evaluate("knn", run_folder, train, test, "--known-classes-only")
    found = result(run_folder)["test"]
    assert (found["num_images"], found["num_of_unknown_class"]) == (30, 1)
