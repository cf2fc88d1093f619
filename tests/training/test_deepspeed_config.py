"""DeepSpeed's config is a pure function of ours; the golden file shows every key it gets."""

import json
from pathlib import Path

import pytest

from ssl_vit.training.config import EngineConfig, OptimizerConfig
from tests.training.engine_worker import plan_for

GOLDEN = Path(__file__).parents[1] / "golden" / "deepspeed_config.json"


def written() -> dict[str, dict]:
    """What `make golden` writes."""
    from ssl_vit.training.engine import deepspeed_config

    found = {}
    for precision in ("float32", "bfloat16"):
        engine = EngineConfig(zero_stage=2, precision=precision, micro_batch_size=2)
        found[precision] = deepspeed_config(
            engine, OptimizerConfig(clip_norm=3.0), plan_for(2, engine)
        )
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_deepspeed_gets_exactly_these_keys(precision: str):
    assert written()[precision] == json.loads(GOLDEN.read_text())[precision]
