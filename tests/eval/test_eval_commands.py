"""`ssl-vit eval` from the outside: tables, files, mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssl_vit_eval.commands import app
from ssl_vit_eval.report import PIXELS, PRETRAINED, RANDOM, KindResult, RowResult, verdict

TRAIN_LABELS = [0, 1, 2, 2] * 15
TEST_LABELS = [0, 1, 2, 2, 1] * 6


@pytest.fixture
def train(make_shards) -> Path:
    return make_shards("train", TRAIN_LABELS, seed=1)


@pytest.fixture
def test(make_shards) -> Path:
    return make_shards("test", TEST_LABELS, seed=2)


def evaluate(*words: object) -> str:
    outcome = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def refused(*words: object) -> tuple[str, bool]:
    """What the program says, and whether it imported torch, for words it must refuse."""
    outcome = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ssl_vit", "eval", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 2, outcome.stderr
    lines = outcome.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in imports}
    assert "ssl_vit_eval.inputs" in modules
    said = [line for line in lines if not line.startswith("import time:")]
    assert [line[:6] for line in said] == ["error:", "fix:  "], said
    assert not outcome.stdout
    return "\n".join(said), "torch" in modules


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_an_evaluation_prints_three_rows_and_writes_its_numbers(run_folder, train, test, protocol):
    output = evaluate(protocol, run_folder, "--train", train, "--test", test, "--workers", 0)
    path = run_folder / "evals" / f"{protocol}_step_00000007.json"
    assert str(path) in output.replace("\n", "")
    result = json.loads(path.read_text())
    assert list(result["rows"]) == [PRETRAINED, RANDOM, PIXELS]
    # The classes are colors: pixels must do well, or labels and features are out of step.
    assert result["rows"][PIXELS]["accuracy"] > 0.9
    for name, row in result["rows"].items():
        assert name in output
        low, high = row["interval_95"]
        assert f"{100 * row['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f}) *" in output
        assert set(row["kinds"]) == ({"pixels"} if name == PIXELS else {"cls", "mean"})
    # Test labels: 6 of 30 are class 0, 12 class 1, 12 class 2; train's most frequent is class 2.
    assert result["majority_accuracy"] == 0.4
    assert result["verdict"] in output
    assert result["train"]["num_images"] == 60
    assert result["test"]["num_images"] == 30
    assert re.fullmatch(r"[0-9a-f]{16}", result["test"]["fingerprint"])
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no partial file is left"


def test_an_evaluation_repeats_to_the_digit(run_folder, train, test):
    words = ("linear", run_folder, "--train", train, "--test", test, "--workers", 0)
    path = run_folder / "evals" / "linear_step_00000007.json"
    evaluate(*words)
    first = path.read_text()
    evaluate(*words)
    assert json.loads(path.read_text())["rows"] == json.loads(first)["rows"]


def test_neighbors_beyond_the_train_set_are_left_out_and_said(run_folder, train, test):
    output = evaluate("knn", run_folder, "--train", train, "--test", test, "--workers", 0)
    assert "k=100, 200 left out: train has 60 images" in output
    result = json.loads((run_folder / "evals" / "knn_step_00000007.json").read_text())
    assert result["protocol"]["k"] == [10, 20]


def test_a_result_on_other_images_is_not_overwritten(run_folder, train, test, make_shards):
    other = make_shards("other", TEST_LABELS, seed=9)
    for shards in (test, other, test):
        evaluate("knn", run_folder, "--train", train, "--test", shards, "--workers", 0)
    files = sorted((run_folder / "evals").iterdir())
    assert len(files) == 2
    tested = [json.loads(file.read_text())["test"]["source"] for file in files]
    assert tested == [str(test), str(other)]


def test_a_bare_export_folder_keeps_its_results_itself(run_folder, train, test, tmp_path):
    bare = tmp_path / "copied"
    (run_folder / "exports" / "step_00000007").rename(bare)
    evaluate("knn", bare, "--train", train, "--test", test, "--workers", 0)
    assert (bare / "evals" / "knn_step_00000007.json").is_file()


def test_mistakes_cost_two_lines_and_no_torch(run_folder, train, test, make_shards, tmp_path):
    unlabeled = make_shards("unlabeled", [-1] * 20, seed=3)
    few = make_shards("few", [0, 1, 2], seed=4)
    others = make_shards("others", TEST_LABELS, seed=5, classes=("blue", "green", "violet"))
    cases = [
        ((tmp_path / "nothing", train, test), "no export at"),
        ((run_folder, tmp_path / "nothing", test), "no shard folder at"),
        ((run_folder, train, unlabeled), "no image of .*unlabeled has a label"),
        ((run_folder, few, test), "has 3 labeled images, at least 10 are needed"),
        ((run_folder, train, others), "only in train: red; only in test: violet"),
        ((run_folder, train, train), "are the same images"),
    ]
    for place, ((run, learn, measure), message) in enumerate(cases):
        protocol = ("knn", "linear")[place % 2]
        said, has_torch = refused(protocol, run, "--train", learn, "--test", measure)
        assert re.search(message, said), said
        assert not has_torch, said
    assert not (run_folder / "evals").exists()


def test_an_unknown_device_is_refused(run_folder, train, test):
    said, _ = refused("knn", run_folder, "--train", train, "--test", test, "--device", "gpu")
    assert "auto, cpu, cuda or cuda:NUMBER" in said


def test_a_crop_ratio_out_of_range_is_refused(run_folder, train, test):
    said, _ = refused("knn", run_folder, "--train", train, "--test", test, "--crop-ratio", "1.2")
    assert "0 < crop ratio <= 1" in said


def test_checking_the_inputs_imports_no_torch(run_folder, train, test):
    program = (
        "import sys; from pathlib import Path; from ssl_vit_eval.inputs import check_inputs;"
        f"check_inputs(Path({str(run_folder)!r}), Path({str(train)!r}), Path({str(test)!r}), "
        ".875, None, None, 'auto'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def rows(pretrained: float, random: float, pixels: float) -> list[RowResult]:
    numbers = {PRETRAINED: pretrained, RANDOM: random, PIXELS: pixels}
    return [
        RowResult(name, (KindResult("mean", "k=10", accuracy), KindResult("cls", "k=10", 0.1)))
        for name, accuracy in numbers.items()
    ]


def test_the_verdict_names_what_was_beaten_and_what_may_be_chance():
    assert "beat both baselines" in verdict(rows(0.8, 0.6, 0.7), 1000)
    assert "but not raw pixels" in verdict(rows(0.7, 0.6, 0.8), 1000)
    assert "No sign of learning" in verdict(rows(0.6, 0.6, 0.5), 1000)
    assert "+20.0 points vs. random" in verdict(rows(0.8, 0.6, 0.7), 1000)
    # 2 · √((0.72 · 0.28 + 0.5 · 0.5) / 1,000) is 4.25 points, against 0.70 it is 4.06; a tenth of
    # that on 100,000 images.
    assert "perhaps raw pixels" in verdict(rows(0.72, 0.5, 0.7), 1000)
    assert "below about 4.3 points may be chance" in verdict(rows(0.72, 0.5, 0.7), 1000)
    assert "beat both baselines" in verdict(rows(0.72, 0.5, 0.7), 100_000)
    assert "No clear sign of learning" in verdict(rows(0.72, 0.7, 0.5), 1000)
