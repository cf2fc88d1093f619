"""What `ssl-vit plan` says of memory, against processes that train."""

import json
from pathlib import Path

import pytest

from ssl_vit.cost.memory import largest_micro_batch, memory_of
from ssl_vit.cost.network import Arithmetic, Cost
from ssl_vit.training.config import EngineConfig
from tests.command_line import python

ROOT = Path(__file__).parents[2]
CPU = Arithmetic("float32", "cpu")
# A made-up network: 1,000 numbers trained, 500 frozen, 40 bytes kept for an image.
COST = Cost(trained=1000, frozen=500, kept_bytes=40.0, checkpointed_bytes=4.0, recomputed_bytes=6.0)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("small", ()),
        ("middle", ()),
        ("large", ()),
        ("small", ("engine.precision=float32",)),
        ("middle", ("engine.zero_stage=0",)),
        ("middle", ("engine.zero_stage=2", "engine.micro_batch_size=16")),
        ("middle", ("engine.zero_stage=3",)),
        ("deep", ("engine.activation_checkpointing=true",)),
        ("middle", ("backbone.drop_path=0.5",)),
    ],
)
def test_the_plans_figure_is_within_15_percent_of_what_a_process_takes(
    size: str, words: tuple[str, ...]
):
    worker = ("-W", "ignore", "-m", "tests.cost.memory_worker")
    done = python(*worker, size, *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["expected"] == pytest.approx(found["measured"], rel=0.15), found


def test_each_stage_shares_what_it_says() -> None:
    memory = {
        stage: memory_of(COST, EngineConfig(zero_stage=stage), 4, (2, 3), CPU) for stage in range(4)
    }
    assert [memory[stage].weights for stage in range(4)] == [4000, 4000, 4000, 1000]
    assert [memory[stage].gathered for stage in range(4)] == [0, 0, 0, 6000]
    assert [memory[stage].optimizer for stage in range(4)] == [8000, 3000, 3000, 3000]
    assert [memory[stage].gradients for stage in range(4)] == [8000, 8000, 6000, 6000]
    assert [memory[stage].held_gradients for stage in range(4)] == [4000, 4000, 1000, 5000]
    assert [memory[stage].teacher for stage in range(4)] == [2000, 2000, 2000, 500]
    assert {memory[stage].activations for stage in range(4)} == {80}
    assert memory[1].total == 4000 + 3000 + 2000 + max(4000 + 80, 8000)


def test_levers_make_it_smaller() -> None:
    plain = memory_of(COST, EngineConfig(), 1, (100, 1), CPU)
    light = memory_of(COST, EngineConfig(activation_checkpointing=True), 1, (100, 1), CPU)
    assert (plain.activations, light.activations) == (4000, 1000)
    for arithmetic, optimizer in ((Arithmetic("bfloat16", "cuda"), 0), (CPU, 12_000)):
        offloaded = memory_of(COST, EngineConfig(offload_optimizer=True), 1, (1, 1), arithmetic)
        assert offloaded.optimizer == optimizer
    assert plain.held_gradients == 0  # there is no micro-batch before the only one


def test_the_largest_micro_batch_divides_the_share_and_fits() -> None:
    def largest(room: float) -> int:
        return largest_micro_batch(COST, EngineConfig(), 1, 96, CPU, room / 0.8)

    always = 4000 + 8000 + 2000
    assert largest(1e9) == 96
    assert largest(always + 4000) == 96
    assert largest(always + 3999) == 0  # too little for the gradients
    # At 32 three micro-batches make a step, so gradients are held while the second is computed.
    big = Cost(trained=1000, frozen=500, kept_bytes=400.0)
    room = (always + 4000 + 400 * 32) / 0.8
    assert largest_micro_batch(big, EngineConfig(), 1, 96, CPU, room) == 32
    assert largest_micro_batch(big, EngineConfig(), 1, 96, CPU, room - 1) == 24
    assert largest_micro_batch(big, EngineConfig(), 1, 96, CPU, 0) == 0
