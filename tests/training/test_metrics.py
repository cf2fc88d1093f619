"""What a run tells: every line complete, curves in TensorBoard, nothing lost between two lines."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_vit.training.config import EngineConfig
from ssl_vit.training.metrics import MetricsLog
from ssl_vit.training.metrics_file import AppendedLines
from ssl_vit.training.update import GroupNorms, Seconds, StepResult
from tests.command_line import SMOKE, python, ssl_vit, torchrun
from tests.training.engine_worker import plan_for

TRAIN = {"loss", "grad_norm", "learning_rate", "weight_decay"}
SPEED = {
    "images_per_second",
    "images_per_second_per_process",
    "data_wait",
    "tflops_per_process",
    "mfu",
    "peak_memory_gib",
}
NESTED = {
    *(
        f"{kind}_norm/{group}"
        for kind in ("grad", "weight", "update")
        for group in ("decayed", "plain")
    ),
    *(f"seconds/{phase}" for phase in ("data", "forward_backward", "optimizer", "after_step")),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    done = ssl_vit(*SMOKE, folder, f"data.shards={shards}", "--profile")
    assert done.returncode == 0, done.stderr
    return folder


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_line_says_everything_and_it_adds_up(run: Path):
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, 21))
    plan = json.loads((run / "plan.json").read_text())
    for line in lines:
        assert set(line) >= TRAIN | SPEED | NESTED
        step_seconds = 8 / line["images_per_second"]
        phases = sum(value for name, value in line.items() if name.startswith("seconds/"))
        assert 0.5 * step_seconds < phases <= step_seconds
        assert line["data_wait"] == pytest.approx(line["seconds/data"] / step_seconds)
        assert line["tflops_per_process"] == pytest.approx(
            plan["step_flops_per_image"] * line["images_per_second"] / 1e12
        )
        assert 0 < line["mfu"] < 1
        assert 0.1 < line["peak_memory_gib"] < 10
        both = line["grad_norm/decayed"] ** 2 + line["grad_norm/plain"] ** 2
        assert both**0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
        # AdamW moves a weight by about the learning rate at most.
        most = line["learning_rate"] * plan["trained_parameters"] ** 0.5
        assert 0.01 * most < line["update_norm/decayed"] < 2 * most


def test_the_curves_are_in_tensorboard(run: Path):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    curves = {f"train/{name}" for name in TRAIN} | {f"speed/{name}" for name in SPEED} | NESTED
    assert set(tags["scalars"]) >= curves
    for tag in curves:
        assert [event.step for event in events.Scalars(tag)] == list(range(1, 21))
    assert "reconstruction" in tags["images"]


def test_a_profile_names_the_phases(run: Path):
    (table,) = (run / "profile").glob("*.txt")
    assert "Self CPU" in table.read_text()
    trace = json.loads(gzip.decompress(table.with_suffix(".json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"data", "forward_backward", "optimizer", "after_step"} <= names


def test_ranks_report_together(tmp_path: Path, shards: Path, run: Path):
    both = tmp_path / "both"
    done = torchrun(2, *SMOKE, both, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    for ours, alone in zip(lines_of(both), lines_of(run), strict=True):
        assert ours["samples"] == alone["samples"]
        for name in TRAIN | {name for name in NESTED if "norm" in name}:
            assert ours[name] == pytest.approx(alone[name], rel=1e-3), name
        rate = ours["images_per_second"]
        assert ours["images_per_second_per_process"] == pytest.approx(rate / 2)


def test_nothing_is_lost_between_two_lines(tmp_path: Path):
    result = StepResult(
        loss=1.0,
        metrics={},
        grad_norm=1.0,
        norms={},
        learning_rate=0.1,
        weight_decay=0.0,
        loss_scale=1.0,
        applied=True,
        overflowed=False,
        suspects=(),
        seconds=Seconds(0.1, 0.6, 0.2, 0.1),
        step_seconds=1.0,
        peak_memory_bytes=2**30,
        samples="0" * 16,
        bad=(),
    )
    slow = replace(result, step_seconds=4.0, norms={"decayed": GroupNorms(1.0, 2.0, 3.0)})
    plan = plan_for(1, EngineConfig())
    lines = AppendedLines(tmp_path / "metrics.jsonl", 0)
    log = MetricsLog(lines, tmp_path / "tensorboard", 0, 3, 8, plan, 1e12)
    for step, blocked in enumerate((0.0, 0.5, 0.25, 0.0, 0.0, 0.0)):
        measures = {"monitor/rankme": 7.0} if step == 1 else {}
        log.record(step, slow if step == 1 else result, blocked, measures)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert [line.get("save_blocked_seconds") for line in lines] == [0.75, None]
    assert [line.get("monitor/rankme") for line in lines] == [7.0, None]
    # Nor are the norms that were measured between; speeds are those of all three updates.
    assert [line.get("weight_norm/decayed") for line in lines] == [2.0, None]
    assert [line["images_per_second"] for line in lines] == [4.0, 8.0]


def test_the_peak_is_this_processs_and_not_that_of_the_one_that_started_it():
    code = "import torch; from ssl_vit.training.measures import peak_memory as peak; "
    code += "print(peak(torch.device('cpu')))"
    large = bytearray(2**30)
    large[::4096] = b"x" * (2**30 // 4096)  # touched, so that it is there
    found = python("-c", code)
    assert 2**26 < int(found.stdout) < 2**30
    assert len(large) == 2**30
