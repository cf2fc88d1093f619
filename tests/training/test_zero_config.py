"""DeepSpeed's config is a pure function of ours; the golden file shows every key it gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.zero_config import deepspeed_config
from tests.training.engine_worker import plan_for

GOLDEN = Path(__file__).parents[1] / "golden" / "deepspeed_config.json"
CASES: dict[str, dict[str, Any]] = {
    "float32": {"zero_stage": 2, "precision": "float32"},
    "bfloat16": {"zero_stage": 2, "precision": "bfloat16"},
    "float16": {"zero_stage": 1, "precision": "float16"},
    "plain": {"zero_stage": 0},
    "sharded": {"zero_stage": 3},
    "offloaded": {"zero_stage": 3, "offload_optimizer": True},
}


def written() -> dict[str, dict[str, Any]]:
    """What `make golden` writes."""
    found = {}
    for name, settings in CASES.items():
        engine = EngineConfig(micro_batch_size=2, **settings)
        found[name] = deepspeed_config(engine, OptimizerConfig(clip_norm=3.0), plan_for(2, engine))
    return found


def test_buckets_are_even_as_deepspeed_asks():
    plan = plan_for(2, EngineConfig()).model_copy(update={"trained_parameters": 1001})
    zero = deepspeed_config(EngineConfig(), OptimizerConfig(), plan)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1002


@pytest.mark.parametrize("name", CASES)
def test_deepspeed_gets_exactly_these_keys(name: str):
    assert written()[name] == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize(
    ("stage", "world_size", "offload", "used"),
    [(0, 1, False, 0), (1, 1, False, 0), (2, 1, False, 0), (3, 1, False, 3), (2, 1, True, 2)]
    + [(stage, 2, False, stage) for stage in range(4)],
)
def test_one_process_has_nothing_to_shard(stage: int, world_size: int, offload: bool, used: int):
    engine = EngineConfig(zero_stage=stage, offload_optimizer=offload)
    assert engine.stage_of(world_size) == used
    config = deepspeed_config(engine, OptimizerConfig(), plan_for(world_size, engine))
    assert config["zero_optimization"]["stage"] == used
