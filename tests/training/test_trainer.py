"""What a run does every so many updates, and in which order; its parts are stand-ins."""

from typing import Any
from unittest.mock import MagicMock

from ssl_vit.distributed import Processes
from ssl_vit.training.config import LogConfig
from ssl_vit.training.trainer import Trainer

# Call of a part → its word below.
WORDS = {
    "engine.train_step": "train",
    "probe.accuracies": "probe",
    "log.begin": "log the start",
    "log.record": "log",
    "log.show": "panels",
    "batches.finish": "check the shards",
    "checkpoints.settle": "settle",
    "exports.write": "export",
    "checkpoints.begin": "checkpoint",
}
MEASURES = {"probe/knn_cls": 0.5}


def stand_ins() -> Any:
    """Parts of a run on one process, each call of which is remembered."""
    parts = MagicMock()
    parts.engine.processes = Processes()
    parts.engine.any_rank.side_effect = lambda *flags: flags
    parts.preemption.requested = False
    parts.bad_samples.are_too_many.return_value = False
    parts.checkpoints.state = (False, False)
    parts.checkpoints.due.side_effect = lambda step: step % 2 == 0
    parts.checkpoints.finish.return_value = True
    parts.probe.every_steps, parts.exports.every_steps = 2, 3
    parts.probe.accuracies.return_value = MEASURES
    parts.exports.write.return_value = True
    return parts


def trainer_of(parts: Any) -> Trainer:
    return Trainer(
        objective=parts.objective,
        engine=parts.engine,
        batches=parts.batches,
        bad_samples=parts.bad_samples,
        nonfinite=parts.nonfinite,
        hangs=parts.hangs,
        checkpoints=parts.checkpoints,
        exports=parts.exports,
        log_config=LogConfig(panel_every_steps=100),
        preemption=parts.preemption,
        log=parts.log,
        probe=parts.probe,
    )


def order_of(parts: Any) -> list[str]:
    """What was done, an update a line."""
    words = [WORDS[name] for name, _, _ in parts.mock_calls if name in WORDS]
    return ", ".join(words).split(", train, ")


def test_probes_log_and_panels_come_before_the_vote_and_the_export_before_the_checkpoint():
    parts = stand_ins()
    assert trainer_of(parts).run(0, 4)
    assert order_of(parts) == [
        "probe, log the start",
        "log, settle",
        "probe, log, settle, checkpoint",
        "log, settle, export",
        "probe, log, panels, check the shards, settle, export, checkpoint",
    ]
    measures = [call.args[3] for call in parts.log.record.call_args_list]
    assert measures == [{}, MEASURES, {}, MEASURES]
    assert [call.args[0] for call in parts.exports.write.call_args_list] == [3, 4]
    assert [call.args[0] for call in parts.log.show.call_args_list] == [4]


def test_a_resumed_run_does_not_probe_before_its_first_step():
    parts = stand_ins()
    assert trainer_of(parts).run(2, 3)
    parts.log.begin.assert_not_called()
    (line,) = order_of(parts)
    assert line.startswith("train, probe, log, panels")


def test_a_rehearsal_does_each_event_once_and_gives_every_step_its_share():
    parts = stand_ins()
    parts.checkpoints.config.every_steps = 10
    costs = trainer_of(parts).rehearse(minutes=1e-6, began=0.0)
    assert costs is not None
    assert parts.probe.accuracies.call_count == parts.exports.write.call_count == 1
    assert costs.each > costs.update
