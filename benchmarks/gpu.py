"""Everything to measure on one GPU: named parts in the order of their worth, which a second call
continues.

    PYTHONPATH=.:launch:data_prep:eval python benchmarks/gpu.py [--seconds 470] [--out gpu]
        [--parts NAME …] [--again] [--device cpu --quick]

Each part has a time limit and appends one line to OUT/results.jsonl, so that a failure costs that
part only. All parts run in one process, which is started again after a part that ran out of time
or killed it. The same command continues with the parts that have no line yet; `--again` repeats
those that failed. OUT/results.md is written at the end of every call. `--device cpu --quick` tries
all of it in tiny sizes; its numbers mean nothing.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_speed import Bench

_START = 90  # seconds that a process may take to import torch and DeepSpeed
_SLOWER = 10  # times, for compiling on a few busy cores
_EAGER, _COMPILED = "engine.compile=false", "engine.compile=true"
_ZERO_0, _ZERO_2 = "engine.zero_stage=0", "engine.zero_stage=2"
_L, _B, _S, _DINO = "mae_vitl16", "mae_vitb16", "mae_vits16", "dinov2_vitl16"
_BEGINS, _ENDS = "\x01begins ", "\x01ends "  # lines of the worker to the driver
# Name → limit in seconds, the compilation included; see `_works` for what they do.
PARTS: dict[str, float] = {
    "products": 30,
    "attention": 30,
    "MAE L/256 loop": 45,
    "MAE L/256 transformers": 40,
    "MAE L/256 engine eager": 45,
    "MAE L/256 engine": 100,
    "MAE L/256 loop compiled": 100,
    "MAE L/256 transformers compiled": 100,
    "MAE L/512 engine": 80,
    "MAE L/128 engine": 80,
    "MAE B/512 engine": 60,
    "MAE B/512 transformers": 40,
    "MAE B/512 transformers compiled": 80,
    "DINOv2 L/64 engine eager": 60,
    "DINOv2 L/64 engine": 150,
    "DINOv2 L/64 engine ZeRO-0": 150,
    "MAE L/256 engine ZeRO-0": 80,
    "MAE L/256 engine ZeRO-2": 80,
    "DINOv2 L/64 loop compiled": 200,
    "MAE L/1024 engine": 100,
    "MAE S/512 transformers reduce-overhead": 120,
    "MAE B/512 transformers reduce-overhead": 120,
    "losses": 150,
    "resume": 150,
    "memory": 150,
    "clock": 100,
}


def _works() -> dict[str, Callable[["Bench"], dict[str, Any]]]:
    """Name → what a part does; imports torch."""
    import gpu_checks as checks
    import gpu_speed as speed

    return {
        "products": speed.products,
        "attention": speed.attention,
        "MAE L/256 loop": lambda b: speed.mae_loop(b, _L, 256, traced=True),
        "MAE L/256 transformers": lambda b: speed.transformers(b, _L, 256),
        "MAE L/256 engine eager": lambda b: speed.mae_engine(b, _L, 256, _EAGER, traced=True),
        "MAE L/256 engine": lambda b: speed.mae_engine(b, _L, 256, _COMPILED, traced=True),
        "MAE L/256 loop compiled": lambda b: speed.mae_loop(b, _L, 256, compiles=True),
        "MAE L/256 transformers compiled": lambda b: speed.transformers(b, _L, 256, "default"),
        "MAE L/512 engine": lambda b: speed.mae_engine(b, _L, 512, _COMPILED),
        "MAE L/128 engine": lambda b: speed.mae_engine(b, _L, 128, _COMPILED),
        "MAE B/512 engine": lambda b: speed.mae_engine(b, _B, 512, _COMPILED),
        "MAE B/512 transformers": lambda b: speed.transformers(b, _B, 512),
        "MAE B/512 transformers compiled": lambda b: speed.transformers(b, _B, 512, "default"),
        "DINOv2 L/64 engine eager": lambda b: speed.dino_engine(b, _DINO, 64, _EAGER, traced=True),
        "DINOv2 L/64 engine": lambda b: speed.dino_engine(b, _DINO, 64, _COMPILED, traced=True),
        "DINOv2 L/64 engine ZeRO-0": lambda b: speed.dino_engine(b, _DINO, 64, _COMPILED, _ZERO_0),
        "MAE L/256 engine ZeRO-0": lambda b: speed.mae_engine(b, _L, 256, _COMPILED, _ZERO_0),
        "MAE L/256 engine ZeRO-2": lambda b: speed.mae_engine(b, _L, 256, _COMPILED, _ZERO_2),
        "DINOv2 L/64 loop compiled": lambda b: speed.dino_loop(b, _DINO, 64, compiles=True),
        "MAE L/1024 engine": lambda b: speed.mae_engine(b, _L, 1024, _COMPILED),
        "MAE S/512 transformers reduce-overhead": lambda b: speed.transformers(
            b, _S, 512, "reduce-overhead"
        ),
        "MAE B/512 transformers reduce-overhead": lambda b: speed.transformers(
            b, _B, 512, "reduce-overhead"
        ),
        "losses": lambda b: _printed(checks.losses, b),
        "resume": lambda b: _printed(checks.resume, b),
        "memory": lambda b: _printed(checks.memory, b),
        "clock": lambda b: _printed(checks.clock, b),
    }


def _printed(check: Callable[[str, Path], None], bench: "Bench") -> dict[str, Any]:
    """What a check prints, line by line."""
    text = io.StringIO()
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with scratch as folder, contextlib.redirect_stdout(text):
        check(bench.device, Path(folder))
    return {"lines": text.getvalue().splitlines()}


class Results:
    """The lines of results.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "results.jsonl"

    def add(self, name: str, status: str, seconds: float, facts: dict[str, Any]) -> None:
        """Append the line of a part."""
        line = {"name": name, "status": status, "seconds": round(seconds, 1), **facts}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def latest(self) -> dict[str, dict[str, Any]]:
        """Name → the newest line of every part that has one."""
        text = self.file.read_text() if self.file.is_file() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return {line["name"]: line for line in lines}


def main() -> int:
    """Run what is left of the parts, or be the process that they run in."""
    arguments = _read_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out.absolute())
    if arguments.work:
        return _work(arguments, results)
    found = results.latest()
    left = [
        name
        for name in arguments.parts
        if name not in found or (arguments.again and found[name]["status"] != "done")
    ]
    print(f"{len(left)} of {len(arguments.parts)} parts are left", flush=True)
    deadline = time.monotonic() + arguments.seconds
    while left and time.monotonic() < deadline:
        left = _drive(left, deadline, arguments, results)
    found = results.latest()
    report = describe([found[name] for name in arguments.parts if name in found])
    (arguments.out / "results.md").write_text(report)
    print(report)
    missing = [name for name in arguments.parts if name not in found]
    if missing:
        print(f"not measured yet: {', '.join(missing)}; run the same command again")
    return 0


def _drive(
    left: Sequence[str], deadline: float, arguments: argparse.Namespace, results: Results
) -> list[str]:
    """Start a worker for these parts and watch it; returns those that are left when it is gone."""
    words = [sys.executable, "-u", "-W", "ignore", __file__, "--work", "--parts", *left]
    words += ["--out", str(results.folder), "--device", arguments.device]
    words += ["--quick"] if arguments.quick else []
    worker = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines: Queue[str | None] = Queue()
    threading.Thread(target=_pass_on, args=(worker, lines), daemon=True).start()
    left, now, began, limit = list(left), "", time.monotonic(), float(_START)
    try:
        while True:
            wait = min(began + limit, deadline) - time.monotonic()
            try:
                line = lines.get(timeout=max(0.0, wait))
            except Empty:
                is_late = time.monotonic() < deadline
                how = "out of time" if is_late else "stopped: --seconds are over"
                print(f"{now or 'the start'}: {how}", flush=True)
                if is_late:  # one that never begins would be tried forever
                    name = now or left[0]
                    results.add(name, "out of time", time.monotonic() - began, {})
                    left.remove(name)
                return left
            if line is None:
                if now:
                    results.add(now, f"exit code {worker.wait()}", time.monotonic() - began, {})
                    left.remove(now)
                elif left:
                    results.add(left.pop(0), "the process did not start", 0.0, {})
                return left
            if line.startswith(_BEGINS):
                now, began = line.removeprefix(_BEGINS).strip(), time.monotonic()
                limit = PARTS[now] * (_SLOWER if arguments.quick else 1)
            elif line.startswith(_ENDS):
                print(f"{now}: {time.monotonic() - began:.0f} s", flush=True)
                left.remove(now)
                now, began, limit = "", time.monotonic(), float(_START)
                if not left:
                    return left
            else:
                print(line, end="", flush=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _pass_on(worker: "subprocess.Popen[str]", lines: "Queue[str | None]") -> None:
    """Put a worker's lines into a queue, and None after the last."""
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def _work(arguments: argparse.Namespace, results: Results) -> int:
    """Run parts one after another in this process."""
    from ssl_vit.distributed import Processes, set_library_environment

    set_library_environment(arguments.device)
    import torch
    from gpu_speed import Bench

    from ssl_vit.training.zero import free_memory, start_process_group

    start_process_group(arguments.device, Processes())
    works, bench = _works(), Bench(arguments.device, arguments.quick)
    for name in arguments.parts:
        print(f"{_BEGINS}{name}", flush=True)
        began = time.monotonic()
        try:
            facts, status = works[name](bench), "done"
        except Exception as error:  # the other parts continue
            text = " ".join(str(error).split())[:500]
            facts, status = {"error": f"{type(error).__name__}: {text}"}, "failed"
        results.add(name, status, time.monotonic() - began, facts)
        print(f"{_ENDS}{name}", flush=True)
        torch._dynamo.reset()
        free_memory(arguments.device)
    return 0


def describe(lines: Sequence[dict[str, Any]]) -> str:
    """A table of the steps, with their ratio to transformers; then all other facts."""
    rates = {line["name"]: line["images/s"] for line in lines if "images/s" in line}
    text = [
        "| | images/s (slowest–fastest) | MFU | × transformers, eager, compiled | first step, s | "
        "kernels over wall | peak, GiB (over plan) | losses |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for line in lines:
        if "images/s" not in line:
            continue
        what = " ".join(line["name"].split()[:2])
        others = [rates.get(f"{what} transformers{mode}") for mode in ("", " compiled")]
        ratios = [f"{line['images/s'] / other:.2f}" if other else "–" for other in others]
        low, high = line["slowest to fastest"]
        peak = f"{line['peak, GiB']} ({line['over plan']})" if "peak, GiB" in line else "–"
        cells = [line["name"], f"{line['images/s']:,} ({low:,}–{high:,})"]
        cells += [f"{line['MFU']:.1%}" if "MFU" in line else "–", ", ".join(ratios)]
        cells += [str(line["first step, s"]), str(line.get("kernels over wall", "–")), peak]
        losses = line["losses"]
        text.append(f"| {' | '.join([*cells, ' '.join(f'{loss:.4f}' for loss in losses)])} |")
    shown = ("images/s", "slowest to fastest", "MFU", "first step, s", "peak, GiB", "losses")
    for line in lines:
        text += ["", f"**{line['name']}**: {line['status']}, {line['seconds']} s"]
        for key, value in line.items():
            if key in ("name", "status", "seconds", "over plan", *shown):
                continue
            values = value if isinstance(value, list) else [value]
            if isinstance(value, dict):
                values = [f"{name}: {each}" for name, each in value.items()]
            text += ["", f"{key}:", *(f"* {each}" for each in values)]
    return "\n".join(text) + "\n"


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=470.0, help="of the whole call")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the results")
    parser.add_argument("--again", action="store_true", help="repeat parts that failed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
