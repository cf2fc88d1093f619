"""What `gpu.py` times: products, attention, and steps of MAE and DINOv2 in our engine, in plain
loops and in transformers. Every function returns what its line of results.jsonl says.
"""

import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssl_vit.cost.estimate import make_estimate
from ssl_vit.data.batches import Loaded
from ssl_vit.distributed import Processes
from ssl_vit.objectives.objective import Objective
from ssl_vit.recipes import read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.counted import counted
from ssl_vit.run.data import data_facts
from ssl_vit.run.machine import find_machine
from ssl_vit.training.engine import Engine, to_device
from ssl_vit.training.measures import peak_flops
from ssl_vit.training.plan import RunPlan, make_plan

Facts = dict[str, Any]
_WARM, _TIMED = 4, 10  # steps
_KERNELS = 25  # in a traced step's table


class Bench(NamedTuple):
    """Where to measure."""

    device: Literal["cpu", "cuda"]
    is_quick: bool
    """Whether sizes are tiny, to find mistakes; numbers mean nothing then."""

    def wait(self) -> None:
        """Wait for the device."""
        torch.get_device_module(self.device).synchronize()

    def config(self, recipe: str, images: int, *words: str) -> RunConfig:
        """A run of so many images a step in one micro-batch, in bfloat16."""
        size = 4 if self.is_quick else images
        own = [f"data.global_batch_size={size}", f"engine.micro_batch_size={size}"]
        own += ["data.lanes=1", "data.source=synthetic", f"engine.device={self.device}"]
        own += ["engine.precision=bfloat16", "schedule.unit=steps", "schedule.length=1000"]
        return read_config(recipe, [*own, "schedule.warmup=10", *words], is_smoke=self.is_quick)


def products(bench: Bench) -> Facts:
    """TFLOP/s of the matrix products of a ViT-L/16 with 256 images, by shape, in bfloat16."""
    rows, found = (64 if bench.is_quick else 256 * 50), {}
    for inner, outer in ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)):
        left = torch.randn(rows, inner, device=bench.device, dtype=torch.bfloat16)
        right = torch.randn(outer, inner, device=bench.device, dtype=torch.bfloat16)
        gradient = torch.randn(rows, outer, device=bench.device, dtype=torch.bfloat16)
        flops = 2 * rows * inner * outer
        ways: dict[str, Callable[[], object]] = {
            "forward": lambda a=left, b=right: F.linear(a, b),
            "to the input": lambda g=gradient, b=right: g @ b,
            "to the weight": lambda g=gradient, a=left: g.T @ a,
        }
        for name, way in ways.items():
            seconds = median(_seconds(bench, way, 20))
            found[f"{rows} × {inner} → {outer}, {name}"] = round(flops / seconds / 1e12, 1)
    return {"tflops": found}


def attention(bench: Bench) -> Facts:
    """ms of attention forward and backward, by shape and backend."""
    found: dict[str, float | str] = {}
    shapes = ((256, 16, 50), (256, 16, 197), (128, 16, 197), (512, 16, 37))
    for batch, heads, tokens in ((2, 2, 5),) if bench.is_quick else shapes:
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            shape = (batch, heads, tokens, 64)
            q, k, v = (
                torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )

            def both(q: Any = q, k: Any = k, v: Any = v) -> None:
                F.scaled_dot_product_attention(q, k, v).sum().backward()

            name = f"{shape} {backend.partition('_')[0].lower()}"
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    found[name] = round(1e3 * median(_seconds(bench, both, 20)), 3)
            except RuntimeError as error:
                found[name] = str(error).splitlines()[0][:80]
    return {"milliseconds": found}


def mae_engine(bench: Bench, recipe: str, images: int, *words: str, traced: bool = False) -> Facts:
    """Steps of MAE in our engine."""
    from mae_steps import draw_batch

    return _engine(bench, bench.config(recipe, images, *words), draw_batch, traced)


def dino_engine(bench: Bench, recipe: str, images: int, *words: str, traced: bool = False) -> Facts:
    """Steps of DINOv2 in our engine."""
    from dino_steps import draw_dino_batch

    return _engine(bench, bench.config(recipe, images, *words), draw_dino_batch, traced)


def mae_loop(
    bench: Bench, recipe: str, images: int, compiles: bool = False, traced: bool = False
) -> Facts:
    """Steps of our MAE in a plain loop; compiled: its forward pass as one graph."""
    from mae_steps import draw_batch, our_step

    config = bench.config(recipe, images)
    batch = draw_batch(config)
    return _loop(bench, config, lambda: our_step(config, batch, compiles=compiles).step, traced)


def dino_loop(bench: Bench, recipe: str, images: int, compiles: bool = False) -> Facts:
    """Steps of our DINOv2 in a plain loop."""
    from dino_steps import draw_dino_batch, our_dino_step

    config = bench.config(recipe, images)
    batch = draw_dino_batch(config)
    return _loop(bench, config, lambda: our_dino_step(config, batch, compiles=compiles).step)


def transformers(bench: Bench, recipe: str, images: int, mode: str = "") -> Facts:
    """Steps of transformers' ViTMAEForPreTraining in a plain loop.

    Args:
        bench: Where.
        recipe: Gives the sizes.
        images: In a step.
        mode: Of torch.compile; empty: not compiled.
    """
    from mae_steps import draw_batch, transformers_step

    config = bench.config(recipe, images)
    here = to_device(draw_batch(config), torch.device(bench.device))
    return _loop(bench, config, lambda: transformers_step(config, here, mode).step)


def _engine(
    bench: Bench, config: RunConfig, draw: Callable[[RunConfig], Any], traced: bool
) -> Facts:
    before = torch.cuda.memory_allocated() if bench.device == "cuda" else 0
    began = time.perf_counter()
    engine = _build(config)
    batch, steps = draw(config), itertools.count()
    if bench.device == "cuda":  # as the loader does
        batch = type(batch)(*(each.pin_memory() for each in batch))
    losses: list[float] = []

    def step() -> None:
        number = next(steps)  # norms as often as in a run
        result = engine.train_step(iter([Loaded(batch)]), number, (number + 1) % 10 == 0)
        losses.append(result.loss)
        peaks.append(result.peak_memory_bytes - before)
        phases.append(result.seconds._asdict())

    peaks: list[int] = []
    phases: list[dict[str, float]] = []
    step()
    facts: Facts = {"first step, s": round(time.perf_counter() - began, 1)}
    if note := engine.take_note():
        facts["note"] = note
    facts |= _timed(bench, config, engine.plan, step, traced)
    facts["losses"] = [round(loss, 5) for loss in losses[:5]]
    late = phases[_WARM:]
    facts["phases, ms"] = {
        name: round(1e3 * median(each[name] for each in late), 2) for name in late[0]
    }
    estimate = make_estimate(config, 1, "h200", 0.22, 0).memory[config.engine.zero_stage]
    if estimate is not None and bench.device == "cuda":
        facts["peak, GiB"] = round(max(peaks) / 2**30, 2)
        facts["over plan"] = round(max(peaks) / estimate.total, 3)
    engine.release()
    return facts


def _loop(
    bench: Bench,
    config: RunConfig,
    make: Callable[[], Callable[[], Any]],
    traced: bool = False,
) -> Facts:
    began = time.perf_counter()
    step = make()
    losses = [float(step())]
    facts: Facts = {"first step, s": round(time.perf_counter() - began, 1)}
    facts |= _timed(bench, config, _plan(config), step, traced)
    return facts | {"losses": losses}


def _timed(
    bench: Bench, config: RunConfig, plan: RunPlan, step: Callable[[], Any], traced: bool
) -> Facts:
    """Images/s of a warm step, its MFU, and where a traced one spends its time."""
    for _ in range(_WARM):
        step()
    seconds = _seconds(bench, step, _TIMED)
    images = config.data.global_batch_size
    facts: Facts = {
        "images/s": round(images / median(seconds), 1),
        "slowest to fastest": [round(images / each(seconds), 1) for each in (max, min)],
    }
    if (peak := peak_flops(torch.device(bench.device), "bfloat16", False)) is not None:
        facts["MFU"] = round(images / median(seconds) * plan.step_flops_per_image / peak, 4)
    return facts | (_trace(bench, step) if traced else {})


def _trace(bench: Bench, step: Callable[[], Any]) -> Facts:
    """One step under torch's profiler: kernel time over wall time, and the largest kernels."""
    bench.wait()
    with torch.profiler.profile() as profiler:
        began = time.perf_counter()
        step()
        bench.wait()
        wall = time.perf_counter() - began
    name = f"self_{'device' if bench.device == 'cuda' else 'cpu'}_time_total"
    rows = [(row.key, getattr(row, name), row.count) for row in profiler.key_averages()]
    if bench.device == "cuda":  # kernels only: operators have the time of theirs once more
        rows = [
            (event.key, getattr(event, name), event.count)
            for event in profiler.key_averages()
            if str(event.device_type).endswith("CUDA")
        ]
    rows.sort(key=lambda row: -row[1])
    busy = sum(microseconds for _, microseconds, _ in rows) / 1e6
    return {
        "kernels over wall": round(busy / wall, 3),
        "kernels": sum(count for *_, count in rows),
        "largest": [
            f"{us / 1e3:.2f} ms, {count} × {key[:70]}" for key, us, count in rows[:_KERNELS]
        ],
    }


def _seconds(bench: Bench, work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each call, after one to warm up."""
    work()
    bench.wait()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        bench.wait()
        found.append(time.perf_counter() - began)
    return found


def _plan(config: RunConfig) -> RunPlan:
    machine = find_machine(config.engine.device, Processes())
    return counted(make_plan(config, machine, data_facts(None)), config, machine)


def _build(config: RunConfig) -> Engine:
    from mae_steps import build

    plan = _plan(config)
    objective: Objective = build(config)
    return Engine(objective, config.optimizer, config.engine, plan, Processes(), config.seed)
