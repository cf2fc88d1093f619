"""Speed of one training step: MAE compared with transformers' ViTMAE, DINOv2 with a step built from
lightly, and the engine with a plain loop.

    python benchmarks/train_step.py [--quick] [--width 768 --depth 12 --batch 64 …]
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from timing import (
    Pairs,
    describe_machine,
    interleave,
    positive,
    repeated,
    times_per_turn,
    with_defaults,
)

from ssl_vit.distributed import Processes, cores_here, set_library_environment
from ssl_vit.run.machine import find_machine

if TYPE_CHECKING:
    from dino_steps import DinoSizes
    from mae_steps import Precision, Sizes, TrainingStep


_PRECISIONS: tuple["Precision", ...] = ("float32", "bfloat16")
_PARTS = ("transformers", "lightly", "engine", "all")
_WARM_UP = 4  # untimed steps per side, in which the heap still grows
_SAME_LOSS = {"float32": 1e-5, "bfloat16": 1e-2}


def main() -> None:
    """Print the machine and the comparisons."""
    arguments = _read_arguments()
    device = find_machine(arguments.device, Processes()).device
    set_library_environment(device)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    import torch

    torch.set_num_threads(arguments.threads or cores_here())
    print(describe_machine(device), flush=True)
    from mae_steps import Sizes

    sizes = Sizes(
        arguments.width,
        arguments.depth,
        arguments.image_size,
        arguments.patch,
        arguments.decoder_width,
        arguments.decoder_depth,
        arguments.batch,
    )
    if arguments.part != "lightly":
        print(f"sizes     {sizes}", flush=True)
    precisions = [arguments.precision] if arguments.precision else list(_PRECISIONS)
    if arguments.part in ("transformers", "all"):
        for precision in precisions:
            compare_with_transformers(
                sizes, precision, device, arguments.pairs, compiles=arguments.compiled
            )
    if arguments.part in ("lightly", "all"):
        from dino_steps import DinoSizes

        dino_sizes = DinoSizes(
            *(arguments.width, arguments.depth, arguments.image_size, arguments.patch),
            *(arguments.local_crops, arguments.prototypes, arguments.dino_batch),
        )
        print(f"sizes     {dino_sizes}", flush=True)
        for precision in precisions:
            compare_with_lightly(dino_sizes, precision, device, arguments.pairs)
        print_pieces(dino_sizes, precisions[-1], device)
    if arguments.part in ("engine", "all"):
        compare_engine_with_loop(sizes, precisions, device, arguments.pairs)


def compare_with_transformers(
    sizes: "Sizes",
    precision: "Precision",
    device: Literal["cpu", "cuda"],
    pairs: int,
    *,
    compiles: bool,
) -> None:
    """Our objective, compiled or not, and transformers', each in a plain loop on images on the
    device.
    """
    import torch
    from mae_steps import draw_batch, our_step, run_config, transformers_step

    from ssl_vit.training.engine import to_device

    config = run_config(sizes, precision, device)
    batch = to_device(draw_batch(config), torch.device(device))
    ours = our_step(config, batch, compiles=compiles)
    theirs = transformers_step(config, batch)
    if precision == "float32":
        print(
            f"trained   {ours.num_parameters:,} parameters ours, {theirs.num_parameters:,} theirs"
        )
    measured, times = _measure(ours, theirs, pairs, device)
    _print(
        f"MAE step  {precision:8}  ours {{}}, transformers {{}}: ours is {{}} as fast   "
        "(target ≥ 1.00×, aim 1.15×)",
        measured,
        times,
    )


def compare_with_lightly(
    sizes: "DinoSizes", precision: "Precision", device: Literal["cpu", "cuda"], pairs: int
) -> None:
    """Our DINOv2 objective and the step of lightly's benchmark, each in a plain loop."""
    import torch
    from dino_steps import dino_config, draw_dino_batch, lightly_dino_step, our_dino_step

    from ssl_vit.training.engine import to_device

    config = dino_config(sizes, precision, device)
    batch = to_device(draw_dino_batch(config), torch.device(device))
    ours, theirs = our_dino_step(config, batch), lightly_dino_step(config, batch)
    _check_same_loss(precision, ours, theirs)
    measured, times = _measure(ours, theirs, pairs, device)
    _print(
        f"DINOv2    {precision:8}  ours {{}}, lightly {{}}: ours is {{}} as fast   "
        "(target ≥ 1.10× in bfloat16)",
        measured,
        times,
    )


def print_pieces(
    sizes: "DinoSizes", precision: "Precision", device: Literal["cpu", "cuda"]
) -> None:
    """The pieces of a DINOv2 step and their shares of its time; CPU time on the CPU."""
    from dino_steps import (
        dino_config,
        draw_dino_batch,
        lightly_dino_step,
        measure_pieces,
        our_dino_step,
    )

    synchronize = _synchronize(device)

    def now() -> float:
        synchronize()
        return time.perf_counter() if device == "cuda" else time.process_time()

    average, sinkhorn = (
        dino_config(sizes, precision, device, centering) for centering in ("average", "sinkhorn")
    )
    batch = draw_dino_batch(average)
    for title, make in (
        ("ours", partial(our_dino_step, average, batch)),
        ("ours, Sinkhorn", partial(our_dino_step, sinkhorn, batch)),
        ("lightly", partial(lightly_dino_step, average, batch)),
    ):
        step, pieces = measure_pieces(make, now, _WARM_UP)
        shares = ", ".join(f"{name} {spent / step:.1%}" for name, spent in pieces.items())
        print(f"pieces    {precision:8}  {title}: {1000 * step:,.0f} ms, {shares}", flush=True)


def compare_engine_with_loop(
    sizes: "Sizes", precisions: list["Precision"], device: Literal["cpu", "cuda"], pairs: int
) -> None:
    """Our engine (ZeRO-1, one process) and a plain torch loop around the same objective."""
    from mae_steps import draw_batch, engine_step, our_step, run_config

    from ssl_vit.training.zero import start_process_group

    start_process_group(device, Processes())
    for precision in precisions:
        config = run_config(sizes, precision, device)
        batch = draw_batch(config)
        plain = our_step(config, batch)
        engine = engine_step(config, batch, config.engine, Processes())
        _check_same_loss(precision, plain, engine)
        measured, times = _measure(plain, engine, pairs, device)
        _print(
            f"engine    {precision:8}  plain loop {{}}, engine {{}}: engine takes {{}} the time"
            "   (target ≤ 1.05×)",
            measured,
            times,
        )
    import torch

    torch.distributed.destroy_process_group()


def _measure(
    first: "TrainingStep", second: "TrainingStep", pairs: int, device: Literal["cpu", "cuda"]
) -> tuple[Pairs, int]:
    """The pairs of turns, and the number of steps per turn."""
    synchronize = _synchronize(device)
    for _ in range(_WARM_UP):
        first.step()
        second.step()
    once = [repeated(side.step, 1, synchronize)().wall for side in (first, second)]
    times = times_per_turn(*once)
    turns = [repeated(side.step, times, synchronize) for side in (first, second)]
    return interleave(turns[0], turns[1], pairs), times


def _print(line: str, measured: Pairs, times: int) -> None:
    """Fill in the milliseconds per step of both sides, and their ratio."""
    steps = (f"{1000 * wall / times:,.0f} ms" for wall in measured.walls)
    print(line.format(*steps, measured.describe()), flush=True)


def _check_same_loss(precision: "Precision", first: "TrainingStep", second: "TrainingStep") -> None:
    """Compare the losses of the first step, to make sure that both sides compute the same."""
    losses = float(first.step()), float(second.step())
    if not math.isclose(*losses, rel_tol=_SAME_LOSS[precision]):
        raise RuntimeError(f"the first losses of the two sides are {losses[0]} and {losses[1]}")


def _synchronize(device: Literal["cpu", "cuda"]) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, about a minute on two cores"
    )
    parser.add_argument("--part", choices=_PARTS, default="all")
    parser.add_argument("--width", type=positive, help="token width")
    parser.add_argument("--depth", type=positive, help="number of blocks")
    parser.add_argument("--image-size", type=positive, default=224, help="pixels per side")
    parser.add_argument("--patch", type=positive, default=16, help="pixels per side of a patch")
    parser.add_argument("--decoder-width", type=positive, help="token width in the decoder")
    parser.add_argument("--decoder-depth", type=positive, help="number of blocks in the decoder")
    parser.add_argument("--batch", type=positive, help="images per step")
    parser.add_argument("--local-crops", type=positive, default=8, help="local crops of DINOv2")
    parser.add_argument("--prototypes", type=positive, help="prototypes of DINOv2's head")
    parser.add_argument("--dino-batch", type=positive, help="images per step of DINOv2")
    parser.add_argument("--precision", choices=_PRECISIONS, help="only this precision")
    parser.add_argument("--pairs", type=positive, help="turns per side")
    parser.add_argument("--threads", type=positive, help="torch threads; default: all cores")
    parser.add_argument(
        "--compiled", action="store_true", help="compile our MAE step beside transformers'"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    # ViT-S with the paper's decoder, which is `mae_vits16`; --quick is about a thirtieth of it.
    full = {
        "width": 384,
        "depth": 12,
        "decoder_width": 512,
        "decoder_depth": 8,
        "batch": 16,
        "prototypes": 8192,
        "dino_batch": 4,
        "pairs": 9,
    }
    quick = {
        "width": 192,
        "depth": 6,
        "decoder_width": 128,
        "decoder_depth": 2,
        "batch": 16,
        "prototypes": 1024,
        "dino_batch": 2,
        "pairs": 7,
    }
    return with_defaults(arguments, quick if arguments.quick else full)


if __name__ == "__main__":
    main()
