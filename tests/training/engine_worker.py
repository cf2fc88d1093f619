"""One rank of tests/training/test_engine.py: a few updates at each ZeRO stage, results to a file.

python engine_worker.py OUT.json STAGE[,STAGE…]      (RANK, WORLD_SIZE, … from the environment)
"""

import json
import sys
from pathlib import Path

import torch

from ssl_vit.data.config import DataConfig
from ssl_vit.data.slots import Loaded
from ssl_vit.distributed import read_processes, set_library_environment
from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.mae import MaeBatch, num_hidden_patches
from ssl_vit.training.config import EngineConfig, OptimizerConfig, ScheduleConfig
from ssl_vit.training.plan import DataFacts, Machine, RunPlan, make_plan

STEPS, BATCH, SEED = 6, 8, 3
BACKBONE = BackboneConfig(width=24, depth=2, heads=2, patch_size=4, image_size=16)
OBJECTIVE = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
OPTIMIZER = OptimizerConfig(
    learning_rate_rule="absolute",
    base_learning_rate=3e-3,
    final_learning_rate=1e-4,
    weight_decay=0.05,
    final_weight_decay=0.2,
    clip_norm=0.05,
)


def whole_batch(step: int) -> MaeBatch:
    """The eight samples of an update, the same in every process."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = (BATCH, 3, BACKBONE.image_size, BACKBONE.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    count = num_hidden_patches(BACKBONE.num_patches, OBJECTIVE.mask_ratio)
    order = torch.rand(BATCH, BACKBONE.num_patches, generator=generator).argsort(dim=1)
    return MaeBatch(images, order < count, torch.arange(BATCH) + BATCH * step)


def plan_for(world_size: int, engine: EngineConfig) -> RunPlan:
    """The plan of this test's run."""
    from ssl_vit.run_config import RunConfig

    config = RunConfig(
        recipe="test",
        data=DataConfig(global_batch_size=BATCH, lanes=4),
        schedule=ScheduleConfig(unit="steps", length=STEPS, warmup=2),
        optimizer=OPTIMIZER,
        engine=engine,
    )
    return make_plan(config, Machine(world_size, 1, "cpu"), DataFacts(64, "none"))


def main(out: Path, stages: list[int]) -> None:
    set_library_environment("cpu")
    from ssl_vit.training.engine import Engine, start_process_group

    torch.set_num_threads(1)
    processes = read_processes()
    start_process_group("cpu", processes)
    results = {}
    for stage in stages:
        config = EngineConfig(
            zero_stage=stage,  # type: ignore[arg-type] - from the command line
            precision="float32",
            micro_batch_size=2,
        )
        plan = plan_for(processes.world_size, config)
        torch.manual_seed(SEED)
        objective = build_objective(OBJECTIVE, BACKBONE, DataConfig())
        engine = Engine(objective, OPTIMIZER, config, plan, processes, SEED)
        share = BATCH // processes.world_size
        first = processes.rank * share
        micro = [
            MaeBatch(*(t[i : i + 2] for t in whole_batch(step)))
            for step in range(STEPS)
            for i in range(first, first + share, 2)
        ]
        batches = iter(Loaded(batch) for batch in micro)
        steps = [engine.train_step(batches, step) for step in range(STEPS)]
        results[stage] = {
            "losses": [step.loss for step in steps],
            "grad_norms": [step.grad_norm for step in steps],
            "samples": [step.samples for step in steps],
            "weights": [float(p.detach().double().norm()) for p in objective.parameters()],
        }
        engine.engine.destroy()
    if processes.is_first:
        out.write_text(json.dumps(results))
    # Together and in order: gloo's threads abort an interpreter that ends under them.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(stage) for stage in sys.argv[2].split(",")])
