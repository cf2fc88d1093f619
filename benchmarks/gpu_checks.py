"""Checks of `gpu.py` that need no quiet machine: losses, resuming, memory and the plan; and a run
on JPEGs. They print what they find.
"""

import copy
import functools
import gc
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

from photographs import USUAL, write_photographs

from ssl_vit.cost.estimate import make_estimate
from ssl_vit.data.config import DataConfig
from ssl_vit.distributed import Processes
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.counted import counted
from ssl_vit.run.data import data_facts
from ssl_vit.run.machine import find_machine
from ssl_vit.training.plan import make_plan

# Like `ssl-vit pretrain`, but works without installing the package.
PRETRAIN = """import sys; from pathlib import Path; from ssl_vit.run.pretrain import prepare, start
size, run, *words = sys.argv[1:]
sys.exit(start(prepare("mae_vitb16", Path(run), words, size == "smoke")))"""
UPDATES = 10  # steps per leg of `losses`


def losses(device: str, scratch: Path) -> None:
    """Ten steps of a small MAE in many configurations, each compared with a reference."""
    import torch
    from mae_steps import draw_batch, our_step

    loop = our_step(_small("cpu"), draw_batch(_small("cpu"))).step
    found, bad = {"loop on the CPU": [float(loop()) for _ in range(UPDATES)]}, 0
    for number, (name, reference, within, *halves) in enumerate(legs()):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        folder, results = scratch / str(number) if len(halves) > 1 else None, []
        try:
            for half, words in enumerate(halves, 1):
                results += _train(_small(device, *words), UPDATES * half // len(halves), folder)[0]
            found[name] = [result.loss for result in results]
            skipped = sum(not result.applied for result in results)
            differ = max(abs(a / b - 1) for a, b in zip(found[name], found[reference], strict=True))
        except Exception as error:  # the other legs continue
            bad += 1
            print(f"{name:36} FAILED: {type(error).__name__}: {str(error)[:250]}")
            continue
        bad += (wrong := not differ <= within)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        print(
            f"{name:36} {'NO: ' if wrong else ''}± {differ:.0e} of {reference} (≤ {within:.0e}), "
            f"norm {results[-1].grad_norm:.4f}, {skipped} skipped, {graphs} graphs"
        )
    print(f"{len(list(legs())) - bad} as expected, {bad} not")


def legs() -> Iterator[tuple[Any, ...]]:
    """(name, reference, relative tolerance of losses, settings, settings of the second half)."""
    zero = [f"engine.zero_stage={stage}" for stage in range(4)]
    half, conv = "engine.precision=bfloat16", "backbone.stem=conv"
    for old, new in ((0, 1), (1, 2), (2, 3), (3, 0)):
        yield f"ZeRO-{old}, then {new}", "loop on the CPU", 1e-4, [zero[old]], [zero[new]]
    for name, reference, within, *words in (
        ("float32", "loop on the CPU", 1e-4),
        ("clipped", "float32", 0.2, "optimizer.clip_norm=0.05", "optimizer.weight_decay=0.1"),
        ("conv stem", "float32", 0.2, conv),
        ("float16", "float32", 0.2, "engine.precision=float16"),  # DeepSpeed would scale others
        ("bfloat16", "float32", 0.02, half),
    ):
        yield name, reference, within, words
        within = 2e-3 if "float16" in name else 1e-4
        yield f"{name} again", name, within, words
        for stage in (0, 2, 3):
            yield f"{name} ZeRO-{stage}", name, within, [*words, zero[stage]]
    light, offload = "engine.activation_checkpointing=true", "engine.offload_optimizer=true"
    compiled, tf32 = "engine.compile=true", "engine.tf32=true"
    for way in (
        *([light], [light, zero[3]], [half, light], [tf32], ["engine.fused_optimizer=false"]),
        *([offload], [offload, zero[2]], [offload, zero[3]], [half, offload]),
        *(["engine.micro_batch_size=8"], [conv, "engine.channels_last=true"]),
        *([compiled], [half, compiled], [half, compiled, light], [half, compiled, zero[2]]),
    ):
        reference = "bfloat16" if half in way else "conv stem" if conv in way else "float32"
        within = 1e-2 if half in way else 2e-3 if tf32 in way else 1e-4
        yield ", ".join(word.partition(".")[2] for word in way), reference, within, way


def _small(device: str, *words: str) -> RunConfig:
    from mae_steps import Sizes, run_config

    # Without weight decay, which the plain loop would apply to biases too.
    more = ("optimizer.base_learning_rate=1e-3", "optimizer.weight_decay=0")
    more += ("optimizer.final_weight_decay=0", "engine.micro_batch_size=4", *words)
    return apply_overrides(run_config(Sizes(128, 2, 64, 16, 64, 1, 8), "float32", device), more)


def resume(device: str, scratch: Path) -> None:
    """A run stopped, killed and resumed at other ZeRO stages, and an uninterrupted one."""
    words = ("data.source=synthetic", "schedule.length=60", f"engine.device={device}")
    whole, broken = scratch / "whole", scratch / "broken"
    unbroken = _pretrain("smoke", whole, *words)
    for stage, number, after in ((2, signal.SIGTERM, 12), (3, signal.SIGKILL, 34), (0, 0, 60)):
        child = _pretrain("smoke", broken, *words, f"engine.zero_stage={stage}")
        while child.poll() is None and len(_metrics(broken)) < after:
            time.sleep(0.005)
        child.send_signal(number)
        code, made = child.wait(), len(_metrics(broken))
        print(f"ZeRO-{stage}, {number!r} after {made} of 60 steps: exit code {code}")
    unbroken.wait()
    starts = json.loads((broken / "environment.json").read_text())["starts"]
    pairs = list(zip(_metrics(broken), _metrics(whole), strict=True))
    differ = max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in pairs)
    print(
        f"ZeRO-2, 3, 0 from steps {[start['start_step'] for start in starts]}, compared with an "
        f"uninterrupted ZeRO-1: {len(pairs)} losses ± {differ:.0e}, ≤ 1e-04; same samples: "
        f"{all(ours['samples'] == theirs['samples'] for ours, theirs in pairs)}"
    )


def memory(device: str, _: Path) -> None:
    """Peak memory of three steps in GiB, and relative to `ssl-vit plan`; ZeRO 0 to 3 per line."""
    print(f"mae_vitl16, micro_batch_size=auto: {_peak(device, 'mae_vitl16', 1024, 'auto')}")
    for recipe, light, (batch, micro) in itertools.product(
        ("mae_vitb16", "mae_vitl16"), ("false", "true"), ((64, 64), (256, 256), (256, 64))
    ):
        words = (device, recipe, batch, micro, f"engine.activation_checkpointing={light}")
        cells = [_peak(*words, f"engine.zero_stage={stage}") for stage in range(4)]
        print(f"{recipe} {batch // micro} × {micro}, checkpointing {light}: {', '.join(cells)}")


def _peak(device: str, recipe: str, batch: int, micro: int | str, *words: str) -> str:
    import torch

    words += ("data.lanes=1", "engine.precision=bfloat16", f"engine.device={device}")
    words += (f"data.global_batch_size={batch}", f"engine.micro_batch_size={micro}")
    config = read_config(recipe, words, is_smoke=device == "cpu")
    _network(config.backbone, config.objective, device)  # not part of the run
    gc.collect()
    torch.cuda.empty_cache()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        results, plan = _train(config, 3)
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:250]}"
    took, size = results[-1].peak_memory_bytes - before, plan.micro_batch_size
    config = apply_overrides(config, [f"engine.micro_batch_size={size}"])
    estimate = make_estimate(config, 1, "h100", 0.4, 0).memory[config.engine.zero_stage]
    chosen = f"{size} of {batch} at once, " if micro == "auto" else ""
    return f"{chosen}{took / 2**30:.2f} ({took / estimate.total:.2f}×)"


def clock(device: str, scratch: Path) -> None:
    """A run on JPEGs: waiting times, and whether the phases add up to the time of a step."""
    from ssl_vit_data_prep.pack import pack_images
    from ssl_vit_data_prep.shard_writer import PackOptions

    size, workers, count, batch = ("", 14, 292, 512) if device == "cuda" else ("smoke", 2, 32, 8)
    folders = [scratch / "images" / str(number) for number in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        same = map(itertools.repeat, (count, USUAL, []))
        list(pool.map(write_photographs, folders, *same, range(workers)))
    pack_images(scratch / "images", scratch / "shards", PackOptions(2**25), workers)
    words = (f"data.shards={scratch / 'shards'}", "data.lanes=8", f"engine.workers={workers}")
    words += (f"data.global_batch_size={batch}", f"engine.device={device}")
    words += ("schedule.unit=steps", "schedule.length=60", "schedule.warmup=5")
    for micro in (batch, batch // 4):
        run = scratch / str(micro)
        code = _pretrain(size, run, *words, f"engine.micro_batch_size={micro}").wait()
        lines = _metrics(run)[10:]  # without the warm-up
        steps = [batch / line["images_per_second"] for line in lines]
        phases = {name: [line[name] for line in lines] for name in lines[0] if "seconds/" in name}
        shares = [sum(row) / step for *row, step in zip(*phases.values(), steps, strict=True)]
        apart = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)
        wait, mfu = (fmean(line[name] for line in lines) for name in ("data_wait", "mfu"))
        print(
            f"{batch // micro} × {micro} (exit code {code}): {batch / apart:,.0f} images/s of "
            f"wall time, data-wait {wait:.1%}, MFU {mfu:.1%}; {1e3 * median(steps):.1f} ms/step, "
            f"{fmean(steps) / apart:.3f} of the loop; phases "
            + ", ".join(f"{name[8:]} {1e3 * median(each):.1f}" for name, each in phases.items())
            + f", together {median(shares):.3f} of it ({min(shares):.3f}–{max(shares):.3f})"
        )


@functools.cache
def _network(backbone: Any, objective: Any, device: str) -> Any:
    import torch

    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.objectives.build import build_objective

    torch.manual_seed(0)
    return build_objective(objective, VisionTransformer(backbone), DataConfig(), 1).to(device)


def _build(config: RunConfig) -> Any:
    from ssl_vit.training.engine import Engine

    machine = find_machine(config.engine.device, Processes())
    objective = copy.deepcopy(_network(config.backbone, config.objective, machine.device))
    plan = counted(make_plan(config, machine, data_facts(None)), config, machine)
    return Engine(objective, config.optimizer, config.engine, plan, Processes(), config.seed)


def _train(config: RunConfig, last: int, folder: Path | None = None) -> tuple[list[Any], Any]:
    from mae_steps import draw_batch

    from ssl_vit.data.batches import Loaded
    from ssl_vit.training.checkpoint import Checkpoints

    engine = _build(config)
    checkpoints = Checkpoints(folder or Path(), engine, config.checkpoint)
    first = checkpoints.restore() if folder else 0
    images, micro = draw_batch(config), engine.plan.micro_batch_size
    parts = zip(*(each.split(micro) for each in images), strict=True)
    parts = [Loaded(type(images)(*part)) for part in parts]
    results = [engine.train_step(iter(parts), step) for step in range(first, last)]
    if folder:
        checkpoints.begin(last)
        checkpoints.finish()
    engine.release()
    for held in (*engine.zero.module.parameters(), engine.zero.optimizer, engine.zero.deepspeed):
        vars(held).clear()  # something keeps ZeRO-3 alive
    return results, engine.plan


def _pretrain(size: str, run: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", PRETRAIN, size, str(run), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)  # stderr is shared


def _metrics(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]
