"""One process that trains, and says how much memory it took beside what `ssl-vit plan` says:

python -m tests.cost.memory_worker SIZE [path=value …]    (RANK, … from the environment)

prints {"measured": BYTES, "expected": BYTES}: the growth of the process from just before the model
is built to the most in three steps, and the plan's figure.
"""

import ctypes
import json
import os
import sys
from dataclasses import asdict

import torch

from ssl_vit.cost.counting import count_cost
from ssl_vit.cost.memory import memory_of
from ssl_vit.cost.network import Arithmetic
from ssl_vit.data.batches import Loaded
from ssl_vit.data.config import DataConfig
from ssl_vit.distributed import Processes, leave, read_processes
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.overrides import apply_overrides
from ssl_vit.run.config import RunConfig
from ssl_vit.run.counted import counted
from ssl_vit.run.machine import find_machine
from ssl_vit.training.config import EngineConfig, ScheduleConfig
from ssl_vit.training.plan import DataFacts, RunPlan, make_plan

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
# (width, depth, heads, images a forward pass)
SIZES = {
    "first": (48, 1, 3, 4),
    "small": (192, 6, 3, 64),
    "middle": (256, 8, 4, 32),
    "large": (512, 12, 8, 8),
    "deep": (384, 12, 6, 24),
}
STEPS = 3


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def config_of(size: str, world_size: int, overrides: list[str]) -> RunConfig:
    width, depth, heads, micro = SIZES[size]
    config = RunConfig(
        recipe="memory",
        backbone=VitConfig(
            width=width, depth=depth, heads=heads, image_size=224, position="sincos"
        ),
        objective=MaeConfig(decoder_width=width // 2, decoder_depth=2, decoder_heads=4),
        data=DataConfig(global_batch_size=micro * world_size, lanes=world_size),
        schedule=ScheduleConfig(unit="steps", length=STEPS, warmup=1),
        engine=EngineConfig(micro_batch_size=micro),
    )
    return apply_overrides(config, overrides)


def plan_of(config: RunConfig, processes: Processes) -> RunPlan:
    machine = find_machine("cpu", processes)
    plan = make_plan(config, machine, DataFacts(10_000, "none"))
    return counted(plan, config, machine)


def main(size: str, overrides: list[str]) -> dict[str, float]:
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive"}
    # What is freed goes back at once, so that the most in use is the most that was needed; a run
    # keeps freed memory for its next step instead.
    ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**16)
    from ssl_vit.training.measures import peak_memory
    from ssl_vit.training.zero import start_process_group

    torch.set_num_threads(1)
    processes = read_processes()
    start_process_group("cpu", processes)
    config = config_of(size, processes.world_size, overrides)
    plan = plan_of(config, processes)
    arithmetic = Arithmetic(plan.precision, "cpu")
    cost = count_cost(config.objective, config.backbone, arithmetic)
    expected = memory_of(
        cost,
        config.engine,
        processes.world_size,
        (plan.micro_batch_size, plan.accumulation),
        arithmetic,
    )
    # Libraries allocate their own at their first use: not the model's.
    train(config_of("first", processes.world_size, overrides), processes)
    before = resident()
    train(config, processes)
    measured = peak_memory(torch.device("cpu")) - before
    return {"measured": measured, "expected": expected.total, **asdict(expected)}


def train(config: RunConfig, processes: Processes) -> None:
    """A few steps."""
    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.objectives.build import build_objective
    from ssl_vit.objectives.mae.objective import MaskedBatch
    from ssl_vit.training.engine import Engine

    plan = plan_of(config, processes)
    objective = build_objective(
        config.objective, VisionTransformer(config.backbone), config.data, total_steps=1
    )
    engine = Engine(objective, config.optimizer, config.engine, plan, processes, seed=0)
    shape = (plan.micro_batch_size, 3, config.backbone.image_size, config.backbone.image_size)
    hidden = torch.rand(shape[0], config.backbone.num_patches).argsort(dim=1)
    batch = MaskedBatch(
        torch.randint(0, 256, shape, dtype=torch.uint8),
        hidden < objective.num_hidden,
        torch.arange(shape[0]),
    )
    for step in range(STEPS):
        engine.train_step(iter([Loaded(batch)] * plan.accumulation), step)
    engine.release()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])), flush=True)
    leave(0)
