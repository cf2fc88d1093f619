"""Speed of a BEiT training step: against transformers' BeitForMaskedImageModeling with the same
weights and tokens, what the bias of relative positions costs attention, and the tokenizer's share.

    python benchmarks/beit_steps.py [--full] [--depth 2 --batch 4 …]

float32, forward and backward pass and fused AdamW; the sides take turns in one process. By default
a ViT-B/16 of two blocks, about two minutes on two cores; `--full` is all twelve.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from timing import Pairs, describe_machine, positive, repeated, take_turns, with_defaults

from ssl_vit.distributed import Processes, cores_here, set_library_environment
from ssl_vit.run.machine import find_machine

if TYPE_CHECKING:
    from mae_steps import TrainingStep
    from torch import Tensor

    from ssl_vit.objectives.beit.objective import Beit
    from ssl_vit.objectives.beit.views import BeitBatch
    from ssl_vit.run.config import RunConfig

_WARM_UP = 3  # untimed steps per side, in which the heap still grows
_CODE_DIM = 32
_SAME_LOSS = 1e-5


class Sizes(NamedTuple):
    """Sizes of all sides."""

    width: int
    depth: int
    image_size: int
    patch_size: int
    codes: int
    batch: int
    """Images per step."""

    def __str__(self) -> str:
        return (
            f"ViT of {self.depth} × {self.width} with relative positions, {self.image_size} pixels "
            f"in patches of {self.patch_size}, {self.codes:,} codes, batch {self.batch}"
        )


def main() -> None:
    """Print the machine and the three comparisons."""
    arguments = _read_arguments()
    device = find_machine(arguments.device, Processes()).device
    set_library_environment(device)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    import torch

    torch.set_num_threads(arguments.threads or cores_here())
    print(describe_machine(device), flush=True)
    sizes = Sizes(
        *(arguments.width, arguments.depth, arguments.image_size, arguments.patch),
        *(arguments.codes, arguments.batch),
    )
    print(f"sizes     {sizes}", flush=True)
    config = beit_config(sizes, device)
    compare_steps(config, arguments.pairs)
    print_pieces(config)
    from beit_attention import print_attention

    backbone = config.backbone
    shape = (sizes.batch, backbone.heads, 1 + backbone.num_patches, 64)
    print_attention(shape, _device(config), arguments.pairs, _synchronize(config))


def beit_config(sizes: Sizes, device: str) -> "RunConfig":
    """`beit_vitb16` in these sizes, without stochastic depth, with a tokenizer as large."""
    from ssl_vit.data.config import DataConfig
    from ssl_vit.models.config import VitConfig
    from ssl_vit.objectives.config import BeitConfig
    from ssl_vit.objectives.given import Codes, GivenNetwork
    from ssl_vit.run.config import RunConfig
    from ssl_vit.training.config import EngineConfig, OptimizerConfig

    backbone = VitConfig(
        width=sizes.width,
        depth=sizes.depth,
        heads=max(1, sizes.width // 64),
        patch_size=sizes.patch_size,
        image_size=sizes.image_size,
        position="relative",
        layer_scale=0.1,
        initialization="depth_scaled",
    )
    half = (0.5, 0.5, 0.5)
    tokenizer = GivenNetwork(
        sha256="",
        backbone=backbone.model_copy(update={"position": "learned", "layer_scale": 0.0}),
        pixel_mean=half,
        pixel_std=half,
        codes=Codes(num=sizes.codes, dim=_CODE_DIM, is_projected=True),
    )
    return RunConfig(
        recipe="benchmark",
        backbone=backbone,
        objective=BeitConfig(tokenizer_info=tokenizer),
        data=DataConfig(
            global_batch_size=sizes.batch, lanes=sizes.batch, pixel_mean=half, pixel_std=half
        ),
        optimizer=OptimizerConfig(base_learning_rate=1e-4, learning_rate_rule="absolute"),
        engine=EngineConfig(
            precision="float32",
            device="cuda" if device == "cuda" else "cpu",
            micro_batch_size=sizes.batch,
        ),
    )


def draw_batch(config: "RunConfig") -> tuple["BeitBatch", "Tensor"]:
    """Noise images with blocks of hidden patches, and (B, N) random tokens, on the device."""
    import numpy as np
    import torch

    from ssl_vit.data.views import Sample
    from ssl_vit.objectives.beit.config import BeitConfig
    from ssl_vit.objectives.beit.views import BeitViews
    from ssl_vit.training.engine import to_device

    assert isinstance(config.objective, BeitConfig)
    batch, (height, width) = config.data.global_batch_size, config.backbone.height_width
    views = BeitViews(config.objective, config.backbone)
    rng = np.random.Generator(np.random.Philox(0))
    draws = [views.draw(height, width, rng) for _ in range(batch)]
    pixels = rng.integers(0, 256, (1, batch, 3, height, width), dtype=np.uint8)
    samples = [Sample(number, -1) for number in range(batch)]
    drawn = views.collate([torch.from_numpy(pixels)], draws, samples)
    tokens = rng.integers(0, config.objective.num_codes, (batch, config.backbone.num_patches))
    device = torch.device(config.engine.device)
    return to_device(drawn, device), torch.from_numpy(tokens).to(device)


def compare_steps(config: "RunConfig", pairs: int) -> None:
    """Seconds per step of all sides, and their ratios."""
    from beit_sides import our_step, transformers_step

    batch, tokens = draw_batch(config)
    sides = {
        "ours": our_step(config, batch, tokens),
        "transformers": transformers_step(config, batch, tokens, hidden_only=False),
        "transformers, logits of hidden patches": transformers_step(
            config, batch, tokens, hidden_only=True
        ),
        "ours, with tokenizer and color jitter": our_step(config, batch, None),
    }
    ours, theirs = sides["ours"], sides["transformers"]
    _check_same_loss([ours, theirs, sides["transformers, logits of hidden patches"]])
    sides["ours, with tokenizer and color jitter"].step()
    all_patches, hidden = config.backbone.num_patches, int(batch.hidden[0].sum())
    print(
        f"trained   {ours.num_parameters:,} parameters ours, {theirs.num_parameters:,} theirs\n"
        f"logits    ours and the third side: of the {hidden} hidden patches; transformers itself: "
        f"of all {all_patches}",
        flush=True,
    )
    steps = [side.step for side in sides.values()]
    for step in steps * (_WARM_UP - 1):
        step()
    turns = [repeated(step, 1, _synchronize(config)) for step in steps]
    spent = dict(zip(sides, take_turns(turns, pairs), strict=True))
    print("\n| step, float32 | ms | time over ours |\n|---|---:|---:|")
    for name, side in spent.items():
        wall = 1000 * statistics.median(each.wall for each in side)
        ratio = "" if name == "ours" else Pairs(spent["ours"], side).describe()
        print(f"| {name} | {wall:,.0f} | {ratio} |", flush=True)


def print_pieces(config: "RunConfig") -> None:
    """The tokenizer's share of our step; CPU time on the CPU."""
    from beit_sides import our_step
    from dino_steps import measure_pieces

    from ssl_vit.objectives.beit import objective as module

    batch, _ = draw_batch(config)
    synchronize = _synchronize(config)

    def now() -> float:
        synchronize()
        return time.perf_counter() if config.engine.device == "cuda" else time.process_time()

    def make(clock: Any) -> "TrainingStep":
        def watch(objective: "Beit", optimizer: Any) -> None:
            clock.watch(objective, "_tokenizer", "tokenizer")
            clock.watch(module, "apply_color_factors", "color jitter")
            clock.watch(objective.predict, "forward", "logits")
            clock.watch(optimizer, "step", "AdamW")

        return our_step(config, batch, None, watch)

    step, pieces = measure_pieces(make, now, _WARM_UP)
    shares = ", ".join(f"{name} {spent / step:.1%}" for name, spent in pieces.items())
    print(
        f"\npieces    our step with a tokenizer as large, without gradient: {shares}; the rest is"
    )
    print(f"          the backbone and the loss (a step: {1000 * step:,.0f} ms)", flush=True)


def _check_same_loss(sides: "list[TrainingStep]") -> None:
    """Compare the losses of the first step, to make sure that all sides compute the same."""
    losses = [float(side.step()) for side in sides]
    if not all(math.isclose(losses[0], loss, rel_tol=_SAME_LOSS) for loss in losses):
        raise RuntimeError(f"the first losses of the sides are {losses}")


def _device(config: "RunConfig") -> Literal["cpu", "cuda"]:
    assert config.engine.device != "auto"
    return config.engine.device


def _synchronize(config: "RunConfig") -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if config.engine.device == "cuda" else torch.cpu.synchronize


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="ViT-B/16: twelve blocks")
    parser.add_argument("--width", type=positive, default=768, help="token width")
    parser.add_argument("--depth", type=positive, help="number of blocks")
    parser.add_argument("--image-size", type=positive, default=224, help="pixels per side")
    parser.add_argument("--patch", type=positive, default=16, help="pixels per side of a patch")
    parser.add_argument("--codes", type=positive, default=8192, help="size of the codebook")
    parser.add_argument("--batch", type=positive, help="images per step")
    parser.add_argument("--pairs", type=positive, help="turns per side")
    parser.add_argument("--threads", type=positive, help="torch threads; default: all cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    full, short = {"depth": 12, "batch": 8, "pairs": 5}, {"depth": 2, "batch": 4, "pairs": 9}
    return with_defaults(arguments, full if arguments.full else short)


if __name__ == "__main__":
    main()
