"""One rank of tests/training/test_engine.py: updates in legs, each an engine of its own; results to
a file.

python -m tests.training.engine_worker OUT.json LEG [LEG …]    (RANK, … from the environment)

A leg is STAGE:FIRST:LAST:FROM:TO[:SETTING=VALUE…], for instance 3:0:2:-:/tmp/saved:tf32=true; "-"
is no folder, settings are the engine's.
"""

import copy
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_vit.data.batches import Loaded
from ssl_vit.data.config import DataConfig
from ssl_vit.distributed import leave, read_processes, set_library_environment
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.ema import EmaTeacher
from ssl_vit.objectives.objective import Objective, StepOutput
from ssl_vit.objectives.one_crop.config import num_hidden_patches
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.overrides import apply_overrides
from ssl_vit.training.config import CheckpointConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from ssl_vit.training.plan import DataFacts, Machine, RunPlan, make_plan

STEPS, BATCH, SEED = 6, 8, 3
BACKBONE = VitConfig(
    width=24,
    depth=2,
    heads=2,
    patch_size=4,
    image_size=16,
    drop_path=float(os.environ.get("DROP_PATH", "0")),
)
OBJECTIVE = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
OPTIMIZER = OptimizerConfig(
    learning_rate_rule="absolute",
    base_learning_rate=3e-3,
    final_learning_rate=1e-4,
    weight_decay=0.05,
    final_weight_decay=0.2,
    clip_norm=0.05,
)


def whole_batch(step: int) -> MaskedBatch:
    """The eight samples of an update, the same in every process."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = (BATCH, 3, BACKBONE.image_size, BACKBONE.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    count = num_hidden_patches(BACKBONE.num_patches, OBJECTIVE.mask_ratio)
    order = torch.rand(BATCH, BACKBONE.num_patches, generator=generator).argsort(dim=1)
    return MaskedBatch(images, order < count, torch.arange(BATCH) + BATCH * step)


def plan_for(world_size: int, engine: EngineConfig) -> RunPlan:
    """The plan of this test's run."""
    from ssl_vit.run.config import RunConfig
    from ssl_vit.run.counted import counted

    config = RunConfig(
        recipe="test",
        data=DataConfig(global_batch_size=BATCH, lanes=4),
        schedule=ScheduleConfig(unit="steps", length=STEPS, warmup=2),
        optimizer=OPTIMIZER,
        engine=engine,
    )
    machine = Machine(world_size, 1, "cpu")
    return counted(make_plan(config, machine, DataFacts(64, "none")), config, machine)


class Distilled(Objective):
    """MAE, and a teacher that follows its backbone and is followed a little: what DINOv2 needs of
    the engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.student = build_objective(
            OBJECTIVE, VisionTransformer(BACKBONE), DataConfig(), total_steps=1
        )
        self.backbone, self.pixel_scale = self.student.backbone, self.student.pixel_scale
        self.teacher = EmaTeacher(copy.deepcopy(self.backbone))
        # Of a length that two ranks cannot share evenly.
        self.scales = nn.Parameter(torch.linspace(0.5, 1.5, 5))

    def forward(self, batch: MaskedBatch, step: int) -> StepOutput:
        mae = self.student(batch, step)
        images = batch.images.float() / 255
        difference = self.backbone(images).cls - self.teacher(images).cls
        loss = mae.loss + 0.1 * difference.float().square().mean() * self.scales.mean()
        return StepOutput(loss, mae.metrics, mae.observed)

    def after_step(self, step: int) -> None:
        self.teacher.follow(self.backbone, 0.9)

    def exported_backbone(self) -> Any:
        return self.teacher.module


def build() -> Distilled:
    """The same on every rank."""
    torch.manual_seed(SEED)
    return Distilled()


def norms_of(objective: Distilled) -> list[float]:
    """Of all parameters, student and teacher."""
    return [float(p.detach().double().norm()) for p in objective.parameters()]


def run_leg(engine: Any, objective: Distilled, first: int, last: int) -> dict[str, Any]:
    """Updates ``first`` to ``last``, without it."""
    processes = engine.processes
    share, size = BATCH // processes.world_size, engine.plan.micro_batch_size
    begin = processes.rank * share
    micro = [
        MaskedBatch(*(t[i : i + size] for t in whole_batch(step)))
        for step in range(first, last)
        for i in range(begin, begin + share, size)
    ]
    batches = iter(Loaded(batch) for batch in micro)
    steps = [engine.train_step(batches, step) for step in range(first, last)]
    with engine.gathered():
        weights = norms_of(objective)
    return {
        "losses": [step.loss for step in steps],
        "grad_norms": [step.grad_norm for step in steps],
        "samples": [step.samples for step in steps],
        "norms": [step.norms for step in steps],
        "loss_scales": [step.loss_scale for step in steps],
        "applied": [step.applied for step in steps],
        "overflowed": [step.overflowed for step in steps],
        "weights": weights,
    }


def main(out: Path, legs: list[str]) -> None:
    set_library_environment("cpu")
    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.engine import Engine
    from ssl_vit.training.zero import free_memory, start_process_group

    torch.set_num_threads(1)
    processes = read_processes()
    start_process_group("cpu", processes)
    results = []
    for leg in legs:
        stage, first, last, source, target, *settings = leg.split(":")
        plain = {"precision": "float32", "micro_batch_size": 2, "zero3_whole_below": 0}
        config = apply_overrides(EngineConfig(**plain), [f"zero_stage={stage}", *settings])
        plan = plan_for(processes.world_size, config)
        objective = build()
        engine = Engine(objective, OPTIMIZER, config, plan, processes, SEED)
        if first_scale := os.environ.get("FIRST_LOSS_SCALE"):
            engine.loss_scale.state[0] = float(first_scale)
        checkpoints = Checkpoints(Path(target), engine, CheckpointConfig())
        if source != "-":
            assert Checkpoints(Path(source), engine, CheckpointConfig()).restore() == int(first)
        results.append(run_leg(engine, objective, int(first), int(last)))
        if target != "-":
            checkpoints.begin(int(last))
            assert checkpoints.finish()
        parameters = [weakref.ref(parameter) for parameter in objective.parameters()]
        engine.release()
        del engine, objective, checkpoints
        free_memory("cpu")
        results[-1]["left"] = sum(parameter() is not None for parameter in parameters)
    if processes.is_first:
        out.write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
