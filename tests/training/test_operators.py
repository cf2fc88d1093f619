"""What one optimizer step asks of the device, counted on a CPU: a GPU waits for none of it, and the
engine adds little to a plain loop.

This file is also the program that counts, on every rank: `python -m tests.training.test_operators
OUT.json STAGE`.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import run_group

ROOT = Path(__file__).parents[2]
WAITS = "aten._local_scalar_dense.default"
"""Reads a number on the host."""


def count_operators(step: Callable[[], object]) -> Counter[str]:
    """Operators by name, and `to float64` for those that make it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            name = str(func)
            found[name] += 1
            if name.startswith("aten._to_copy") and result.dtype == torch.float64:
                found["to float64"] += 1
            return result

    with Counting():
        step()
    return found


def count_plain_loop() -> Counter[str]:
    """Of one step of the same training without the engine."""
    import torch

    from tests.training import engine_worker as worker

    model = worker.build()
    trained = [each for each in model.parameters() if each.requires_grad]
    groups = [[each for each in trained if (each.ndim > 1) is wide] for wide in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], fused=True)

    def step(number: int) -> None:
        loss = model(worker.whole_batch(number), number).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, worker.OPTIMIZER.clip_norm)
        optimizer.step()
        model.after_step(number)
        loss.item()

    step(0)
    batch = worker.whole_batch(1)
    worker.whole_batch = lambda _: batch  # making it does not count
    return count_operators(lambda: step(1))


def main(out: Path, stage: int) -> None:
    """Count on one rank; the first writes."""
    from ssl_vit.distributed import leave, read_processes, set_library_environment

    set_library_environment("cpu")
    import torch

    from ssl_vit.data.batches import Loaded
    from ssl_vit.objectives.one_crop.views import MaskedBatch
    from ssl_vit.training.config import EngineConfig
    from ssl_vit.training.engine import Engine
    from ssl_vit.training.zero import start_process_group
    from tests.training import engine_worker as worker

    torch.set_num_threads(1)
    processes = read_processes()
    start_process_group("cpu", processes)
    config = EngineConfig(micro_batch_size=8, precision="float32", zero_stage=stage)
    plan = worker.plan_for(processes.world_size, config)
    engine = Engine(worker.build(), worker.OPTIMIZER, config, plan, processes, worker.SEED)

    def batch(number: int) -> Loaded:
        whole = worker.whole_batch(number)
        return Loaded(MaskedBatch(*(each[: plan.micro_batch_size] for each in whole)))

    engine.train_step(iter([batch(0)]), 0, measure_norms=False)
    loaded = iter([batch(1)])
    ours = count_operators(lambda: engine.train_step(loaded, 1, measure_norms=False))
    if processes.is_first:
        out.write_text(json.dumps({"engine": ours, "plain": count_plain_loop()}))
    torch.distributed.barrier()
    leave(0)


@pytest.mark.parametrize(("stage", "world_size", "most"), [(0, 1, 1.05), (1, 2, 1.4), (2, 2, 1.45)])
def test_the_engine_adds_few_operators_to_a_plain_loop(
    tmp_path: Path, stage: int, world_size: int, most: float
):
    out = tmp_path / "counts.json"
    words = ("-m", "tests.training.test_operators", out, str(stage))
    ranks = run_group([words] * world_size, cwd=ROOT)
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(rank.stderr for rank in ranks)
    ours, plain = (Counter(json.loads(out.read_text())[name]) for name in ("engine", "plain"))
    added = (ours - plain).most_common(8)
    assert ours.total() <= most * plain.total(), added
    assert ours[WAITS] <= 1
    assert ours["to float64"] <= 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
