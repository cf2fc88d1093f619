"""What a run's log holds of updates that have no line of their own."""

import json
from pathlib import Path

from ssl_vit.training.engine import StepResult
from ssl_vit.training.metrics import MetricsLog


def test_time_spent_saving_is_not_lost_between_two_lines(tmp_path: Path):
    result = StepResult(
        loss=1.0,
        metrics={},
        grad_norm=1.0,
        learning_rate=0.1,
        weight_decay=0.0,
        applied=True,
        suspects=(),
        data_seconds=0.1,
        step_seconds=1.0,
        samples="0" * 16,
        bad=(),
        batch=None,
    )
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0, 3, 8, 80)
    for step, blocked in enumerate((0.0, 0.5, 0.25, 0.0, 0.0, 0.0)):
        log.record(step, result, blocked)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert [line.get("save_blocked_seconds") for line in lines] == [0.75, None]
