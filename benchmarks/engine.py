"""The engine: ZeRO 0 to 3 compared with torch's DistributedDataParallel, memory compared with
theory, cold start, saving and resuming.

    python benchmarks/engine.py [--quick] [--part speed|gather|memory|start|state]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import describe_machine, positive, with_defaults

from ssl_vit.cost.network import FLOAT32
from ssl_vit.distributed import local_group

RANK = Path(__file__).parent / "engine_rank.py"


def main() -> None:
    """Print the machine and the selected parts."""
    arguments = _read_arguments()
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive"}
    print(describe_machine("cpu"), flush=True)
    for part in PARTS if arguments.part == "all" else (arguments.part,):
        PARTS[part](arguments)


def speed(arguments: argparse.Namespace) -> None:
    """One line per stage: the ratio of its time to DistributedDataParallel's."""
    words = (arguments.width, arguments.depth, arguments.batch, arguments.pairs)
    found = _run_ranks(arguments.processes, "speed", *words)
    print(
        f"speed     {arguments.processes} processes, ViT of {arguments.depth} × {arguments.width}, "
        f"{arguments.batch} images per process; DDP {found.pop('ddp')}"
    )
    targets = {"0": 1.05, "1": 1.05, "2": 1.05, "3": 1.30}
    for stage, line in found.items():
        print(f"          ZeRO-{stage}: {line}   (target ≤ {targets[stage]:.2f}×)", flush=True)


def gather(arguments: argparse.Namespace) -> None:
    """Gathering 84 MB between CPUs: the ratio of our time to gloo's."""
    found = _run_ranks(arguments.processes, "gather", 21, arguments.pairs)
    print(f"gather    {found['line']}", flush=True)


def memory(arguments: argparse.Namespace) -> None:
    """One line per stage: resident bytes per parameter and rank."""
    world = arguments.processes
    print(
        f"memory    {world} processes, bytes per parameter and rank, float32, with theory and plan:"
    )
    print(f"          {'':7}{'between steps':>32}{'peak':>24}")
    for stage in range(4):
        found = _run_ranks(world, "memory", stage, arguments.memory_width, arguments.depth)
        print(
            f"          ZeRO-{stage} {found['resting']:6.2f} (theory {theory(stage, world):5.2f}, "
            f"plan {found['plan_resting']:5.2f}) {found['peak']:8.2f} "
            f"(plan {found['plan_peak']:5.2f})",
            flush=True,
        )


def theory(stage: int, world: int) -> float:
    """Bytes per parameter that are kept between two steps: weights and AdamW's two moments; from
    stage 1 on also float32 copies of the weights, which DeepSpeed updates (Rajbhandari et al. 2019,
    arXiv 1910.02054, section 5, with 4 bytes per weight and gradients freed).
    """
    if stage == 0:
        return FLOAT32 * 3.0
    optimizer = FLOAT32 * 3 / world
    return optimizer + (FLOAT32 / world if stage == 3 else FLOAT32)


def start(arguments: argparse.Namespace) -> None:
    """Seconds from the command to the first step, and those of the imports alone."""
    imports, firsts = [], []
    code = "import ssl_vit.run.pretrain, ssl_vit.training.trainer, ssl_vit.training.engine"
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.pairs):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            imports.append(time.perf_counter() - began)
            firsts.append(_seconds_to_first_update(Path(folder) / str(turn)))
    print(
        f"start     first step after {_spread(firsts)} s (target ≤ 8), "
        f"imports alone {_spread(imports)} s (target ≤ 4)",
        flush=True,
    )


def state(arguments: argparse.Namespace) -> None:
    """Saving and resuming, compared with torch.save and DeepSpeed's checkpoint of the engine."""
    print("state     seconds; training is blocked for the first number only")
    for width in arguments.state_widths:
        with tempfile.TemporaryDirectory() as folder:
            found = _run_ranks(1, "state", width, arguments.depth, arguments.pairs, folder)
        print(f"          {found['size'] / 1e6:,.0f} MB: {found['line']}", flush=True)


def _seconds_to_first_update(run: Path) -> float:
    words = ("pretrain", "mae_vits16", "--smoke", "--run", run, "data.source=synthetic")
    began = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", "ssl_vit", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        if running.poll() not in (None, 0):
            raise RuntimeError("the run failed")
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    running.wait()
    return seconds


def _run_ranks(world: int, *words: object) -> dict[str, Any]:
    """Run `engine_rank.py` as the ranks of one group; returns the output of the first."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RANK), *map(str, words)],
            env=os.environ | place,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in local_group(world)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"a rank of {words} failed")
    return json.loads(outputs[0].splitlines()[-1])


def _spread(seconds: list[float]) -> str:
    median = statistics.median(seconds)
    return f"{median:.1f} ({min(seconds):.1f}–{max(seconds):.1f}, {len(seconds)} turns)"


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--width", type=positive, help="token width, for `speed`")
    parser.add_argument("--depth", type=positive, help="number of blocks")
    parser.add_argument("--batch", type=positive, help="images per process")
    parser.add_argument("--pairs", type=positive, help="turns per side")
    parser.add_argument("--memory-width", type=positive, help="token width, for `memory`")
    parser.add_argument("--state-widths", type=positive, nargs="+", help="widths, for `state`")
    arguments = parser.parse_args()
    full = {"width": 384, "depth": 12, "batch": 64, "pairs": 7, "memory_width": 768}
    quick = {"width": 192, "depth": 6, "batch": 16, "pairs": 3, "memory_width": 384}
    if arguments.state_widths is None:
        arguments.state_widths = [192] if arguments.quick else [192, 384, 768]
    return with_defaults(arguments, quick if arguments.quick else full)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "speed": speed,
    "gather": gather,
    "memory": memory,
    "start": start,
    "state": state,
}


if __name__ == "__main__":
    main()
