"""Steps that were skipped, ranks that hang, ranks that were started differently.

This file is also the program that a test starts: `python -m tests.training.test_guards UPDATES …`
is `ssl-vit …` whose pixels are NaN in those updates, "3,7" for instance.
"""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.data.sources import open_shards
from tests.command_line import PATIENCE, SMOKE, losses, python, run_ranks, ssl_vit

ROOT = Path(__file__).parents[2]
WHOLE = "engine.micro_batch_size=8"  # one forward pass per step


def poisoned(updates: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "tests.training.test_guards", updates, *words, WHOLE, cwd=ROOT)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_poisoned_step_is_skipped_counted_and_its_samples_are_named(
    stage: int, shards: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}", f"engine.zero_stage={stage}")
    done = poisoned("5,9", *SMOKE, run, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was skipped: the loss was not finite") == 2
    lines = [json.loads(line) for line in (run / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 9]
    opened = open_shards(shards)
    keys = {opened.key(number) for number in range(opened.num_samples)}
    for line in lines:
        assert len(line["keys"]) == line["suspects"] == 8
        assert set(line["keys"]) <= keys
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if line["loss"] is None] == [5, 9]
    assert [line["step"] for line in metrics if line.get("skipped")] == [5, 9]
    # Nothing of it is left: the update after is as good as the one before.
    assert metrics[5]["loss"] == pytest.approx(metrics[3]["loss"], rel=0.1)


def test_a_poisoned_loss_is_not_taken_for_a_loss_scale_that_is_too_high(
    shards: Path, tmp_path: Path
):
    run, words = tmp_path / "run", (f"data.shards={shards}", "engine.precision=float16")
    done = poisoned("5", *SMOKE, run, *words)
    assert done.returncode == 0, done.stderr
    assert "was skipped: the loss was not finite" in done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["loss_scale"] for line in lines} == {2.0**16}


def test_three_in_a_row_end_the_run_with_a_diagnosis(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    done = poisoned("4,5,6", *SMOKE, run, f"data.shards={shards}")
    assert done.returncode == 2
    wrong, fix = done.stderr.strip().splitlines()[-2:]
    said = "error: 3 consecutive steps had a non-finite loss or gradient, up to step 6"
    assert wrong.startswith(said)
    assert "nonfinite.jsonl" in wrong
    assert "optimizer.base_learning_rate" in fix
    assert not list((run / "checkpoints").glob("step_*"))
    more = ("guard.max_consecutive_nonfinite=4",)
    assert poisoned("4,5,6", *SMOKE, run, f"data.shards={shards}", *more).returncode == 0


def test_a_run_that_stands_still_says_where(shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    done = poisoned("hang", *SMOKE, run, f"data.shards={shards}", "guard.hang_minutes=0.05")
    assert done.returncode == 0, done.stderr
    assert "no step for 0.05 minutes" in done.stderr
    stacks = (run / "hangs" / "rank_00000.txt").read_text()
    assert "in stand_still" in stacks
    assert "in train_step" in stacks


def test_a_run_that_goes_on_leaves_no_stacks(shards: Path, tmp_path: Path):
    done = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "hangs").exists()


def test_ranks_that_were_started_differently_refuse(shards: Path, tmp_path: Path):
    words = (*SMOKE, tmp_path / "run", f"data.shards={shards}")
    first, second = run_ranks([[*words], [*words, "objective.mask_ratio=0.6"]])
    for rank in (first, second):
        assert rank.returncode == 2
    assert "rank 1 was started with a different config than rank 0" in first.stderr
    assert "mask_ratio: 0.6, not mask_ratio: 0.75" in first.stderr
    assert losses(tmp_path / "run") == []


def main(updates: str, words: list[str]) -> None:
    """`ssl-vit` with another scaling of pixels."""
    from torch._subclasses.fake_tensor import FakeTensor

    from ssl_vit.cli import main as run
    from ssl_vit.objectives.pixels import PixelScale

    plain: Any = PixelScale.forward
    calls, said, write = 0, io.StringIO(), sys.stderr.write
    sys.stderr.write = lambda text: said.write(text) and write(text)  # type: ignore[method-assign]

    def stand_still() -> None:
        stacks = Path(words[words.index("--run") + 1]) / "hangs" / "rank_00000.txt"
        deadline = time.monotonic() + PATIENCE
        while "stand_still" not in stacks.read_text() or "no step for" not in said.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def forward(self: PixelScale, images: Any) -> Any:
        nonlocal calls
        # Not the pass without data that counts what a step costs.
        calls += self.training and not isinstance(images, FakeTensor)
        if updates == "hang" and calls == 3:
            stand_still()
        scaled = plain(self, images)
        is_bad = updates != "hang" and str(calls) in updates.split(",") and self.training
        return scaled * float("nan") if is_bad else scaled

    PixelScale.forward = forward  # type: ignore[method-assign]
    sys.argv[1:] = words
    run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
