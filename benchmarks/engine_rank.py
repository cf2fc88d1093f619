"""One rank of `engine.py`; the first rank prints the results as JSON.

python engine_rank.py speed WIDTH DEPTH BATCH PAIRS
python engine_rank.py memory STAGE WIDTH DEPTH
python engine_rank.py state WIDTH DEPTH PAIRS FOLDER
python engine_rank.py gather MILLIONS PAIRS
"""

import ctypes
import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import Pairs, Turn, interleave, repeated, take_turns

from ssl_vit.distributed import Processes, keep_freed_memory, leave, read_processes

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def main(part: str, words: list[str]) -> None:
    """Join the process group and run one part."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive"}
    import torch

    from ssl_vit.training.zero import start_process_group

    processes = read_processes()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes.local_world_size))
    if part == "memory":  # return freed memory at once, so that only memory in use counts
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**16)
    else:
        keep_freed_memory()
    start_process_group("cpu", processes)
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "speed": speed,
        "memory": memory,
        "state": state,
        "gather": gather,
    }
    found = parts[part](processes, *words)
    if processes.is_first:
        print(json.dumps(found), flush=True)
    torch.distributed.barrier()
    leave(0)


def speed(processes: Processes, width: str, depth: str, batch: str, pairs: str) -> dict[str, Any]:
    """DDP and the ZeRO stages take turns, synchronized over ranks."""
    import torch
    from mae_steps import draw_batch, engine_step, our_step, run_config

    from ssl_vit.training.config import EngineConfig

    micro = int(batch)
    config = run_config(
        _sizes(int(width), int(depth), micro * processes.world_size), "bfloat16", "cpu"
    )
    images = _first(draw_batch(config), micro)
    sides = [our_step(config, images, processes)]
    for stage in range(4):
        settings: dict[str, Any] = {"zero_stage": stage, "precision": "bfloat16"}
        settings |= {"micro_batch_size": micro, "device": "cpu"}
        sides.append(engine_step(config, images, EngineConfig(**settings), processes))
    losses = [float(side.step()) for side in sides]
    for side in sides:
        side.step()
    # A loss is of the whole batch, or of this rank's part.
    if max(losses) - min(losses) > 0.05 * losses[0]:
        raise RuntimeError(f"the losses of DDP and the ZeRO stages differ: {losses}")

    def turn(step: Callable[[], Any]) -> Turn:
        return repeated(lambda: float(step()), 2, torch.distributed.barrier)

    spent = take_turns([turn(side.step) for side in sides], int(pairs))
    found = {str(stage): Pairs(spent[0], spent[stage + 1]).describe() for stage in range(4)}
    wall = statistics.median(each.wall for each in spent[0]) / 2
    return {"ddp": f"{1000 * wall:,.0f} ms per step", **found}


def memory(processes: Processes, stage: str, width: str, depth: str) -> dict[str, Any]:
    """Bytes per parameter: between steps, and at peak."""
    import torch
    from mae_steps import draw_batch, engine_step, run_config

    from ssl_vit.cost.counting import count_cost
    from ssl_vit.cost.memory import memory_of
    from ssl_vit.cost.network import Arithmetic
    from ssl_vit.training.config import EngineConfig
    from ssl_vit.training.measures import peak_memory

    def steps(size: int, layers: int) -> tuple[Any, Any, Callable[[], Any]]:
        world = processes.world_size
        config = run_config(_sizes(size, layers, world, image_size=64), "float32", "cpu")
        images = _first(draw_batch(config), 1)
        settings: dict[str, Any] = {"zero_stage": int(stage), "precision": "float32"}
        engine = EngineConfig(**settings, micro_batch_size=1, device="cpu")
        made = engine_step(config, images, engine, processes)
        return config, engine, made.step

    _, _, first = steps(64, 1)  # so that memory the libraries allocate once does not count
    first()
    first()
    before = _resident()
    config, engine, step = steps(int(width), int(depth))
    step()
    resting = _resident() - before
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    step()
    peak = peak_memory(torch.device("cpu")) - before
    arithmetic = Arithmetic("float32", "cpu")
    cost = count_cost(config.objective, config.backbone, arithmetic)
    plan = memory_of(cost, engine, processes.world_size, (1, 1), arithmetic)
    held = plan.held_gradients if engine.zero_stage == 3 else 0
    always = plan.weights + plan.optimizer + held
    numbers = {"resting": resting, "peak": peak, "plan_resting": always, "plan_peak": plan.total}
    return {name: value / cost.trained for name, value in numbers.items()}


def state(processes: Processes, width: str, depth: str, pairs: str, folder: str) -> dict[str, Any]:
    """Seconds to save and load an engine's state in three ways, taking turns."""
    import torch
    from mae_steps import draw_batch, run_config

    from ssl_vit.data.batches import Loaded
    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.objectives.build import build_objective
    from ssl_vit.run.counted import counted
    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.config import CheckpointConfig
    from ssl_vit.training.engine import Engine
    from ssl_vit.training.plan import DataFacts, Machine, make_plan

    config = run_config(_sizes(int(width), int(depth), 1, image_size=64), "float32", "cpu")
    machine = Machine(1, 2, "cpu")
    plan = counted(make_plan(config, machine, DataFacts(1000, "benchmark")), config, machine)
    objective = build_objective(
        config.objective, VisionTransformer(config.backbone), config.data, total_steps=1
    )
    engine = Engine(objective, config.optimizer, config.engine, plan, processes, 0)
    engine.train_step(iter([Loaded(draw_batch(config))]), 0)
    theirs = engine.zero.deepspeed
    root, steps = Path(folder), iter(range(1, 10**6))
    checkpoints = Checkpoints(root / "ours", engine, CheckpointConfig(keep_last=1))

    def plain_state() -> dict[str, Any]:
        return {"model": objective.state_dict(), "optimizer": engine.zero.optimizer.state_dict()}

    took: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        took.setdefault(name, []).append(time.perf_counter() - began)

    for _ in range(int(pairs)):
        timed("ours blocked", lambda: checkpoints.begin(next(steps)))
        timed("written", checkpoints.finish)
        timed("ours load", checkpoints.restore)
        timed("torch.save", lambda: torch.save(plain_state(), root / "plain.pt"))
        timed("torch.load", lambda: torch.load(root / "plain.pt", weights_only=False))
        timed("DeepSpeed save", lambda: theirs.save_checkpoint(str(root / "theirs"), "tag"))
        timed("load", lambda: theirs.load_checkpoint(str(root / "theirs"), "tag"))
        shutil.rmtree(root / "theirs")
    size = sum(file.stat().st_size for file in (root / "ours").rglob("*.safetensors"))
    median = {name: statistics.median(each) for name, each in took.items()}
    line = ", ".join(f"{name} {seconds:.3f}" for name, seconds in median.items())
    return {"size": size, "line": line}


def gather(_: Processes, millions: str, pairs: str) -> dict[str, Any]:
    """gloo's all-gather and ours, taking turns."""
    import torch
    import torch.distributed as dist

    from ssl_vit.training.gloo import gather_by_broadcasts

    world = dist.get_world_size()
    whole = torch.rand(int(millions) * 10**6 // world * world)
    part = torch.rand(len(whole) // world)
    theirs = repeated(lambda: dist.all_gather_into_tensor(whole, part), 2, dist.barrier)
    ours = repeated(lambda: gather_by_broadcasts(whole, part), 2, dist.barrier)
    measured = interleave(theirs, ours, int(pairs))
    walls = ", ".join(f"{500 * wall:.0f} ms" for wall in measured.walls)
    return {"line": f"gloo, ours {walls}: {measured.describe()}"}


def _first(batch: Any, count: int) -> Any:
    """The first ``count`` samples of a batch, this rank's part."""
    return type(batch)(*(tensor[:count] for tensor in batch))


def _sizes(width: int, depth: int, batch: int, image_size: int = 224) -> Any:
    from mae_steps import Sizes

    return Sizes(width, depth, image_size, 16, max(64, width // 2), 2, batch)


def _resident() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
