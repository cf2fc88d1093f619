"""Savings from skipping dropped samples: our blocks compared with the same blocks and timm's
DropPath, which computes every sample and multiplies some by zero.

    python benchmarks/drop_path.py [--quick] [--rate 0.3 --batch 20 --tokens 197 …]
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from timing import (
    describe_machine,
    interleave,
    positive,
    repeated,
    times_per_turn,
    with_defaults,
)

from ssl_vit.distributed import Processes, cores_here, set_library_environment
from ssl_vit.models.config import VIT_SIZES
from ssl_vit.run.machine import find_machine

if TYPE_CHECKING:
    from torch import Tensor, nn

    Step = Callable[[], object]

_WARM_UP = 2  # steps of each side before it is timed


def main() -> None:
    """Print the machine, the sizes, and the ratios of our time and memory to timm's."""
    arguments = _read_arguments()
    device = find_machine(arguments.device, Processes()).device
    set_library_environment(device)

    import torch

    from ssl_vit.models.drop_path import num_kept

    torch.set_num_threads(arguments.threads or cores_here())
    print(describe_machine(device), flush=True)
    size, batch, rate = VIT_SIZES[arguments.size], arguments.batch, arguments.rate
    width, depth = size["width"], arguments.depth or size["depth"]
    print(
        f"sizes     {depth} blocks of {width}, {batch} × {arguments.tokens} tokens, bfloat16; drop "
        f"path {rate:g}: {num_kept(batch, rate)} of {batch} computed",
        flush=True,
    )
    tokens = torch.randn(batch, arguments.tokens, width, device=device, requires_grad=True)
    stacks = [_stack(width, depth, size["heads"], rate).to(device) for _ in range(2)]
    _drop_by_zeros(stacks[0], rate)
    theirs, ours = (_step(stack, tokens) for stack in stacks)
    for _ in range(_WARM_UP):
        theirs()
        ours()
    synchronize = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    times = times_per_turn(*(repeated(side, 1, synchronize)().wall for side in (theirs, ours)))
    turns = [repeated(side, times, synchronize) for side in (theirs, ours)]
    measured = interleave(turns[0], turns[1], arguments.pairs)
    walls = [f"{1000 * wall / times:,.0f} ms" for wall in measured.walls]
    print(
        f"time      forward and backward: timm's {walls[0]}, ours {walls[1]}: ours takes "
        f"{measured.describe()} the time",
        flush=True,
    )
    kept = [_kept_bytes(stack, tokens) for stack in stacks]
    print(
        f"memory    kept for the backward pass: timm's {kept[0] / 2**20:,.0f} MiB, ours "
        f"{kept[1] / 2**20:,.0f} MiB: {kept[1] / kept[0]:.3f}×",
        flush=True,
    )


def _stack(width: int, depth: int, heads: int, rate: float) -> "nn.Sequential":
    from torch import nn

    from ssl_vit.models.block import Block

    # LayerScale, as in DINOv2's recipes.
    blocks = (Block(width, heads, layer_scale=1e-5, drop_path=rate) for _ in range(depth))
    return nn.Sequential(*blocks)


def _drop_by_zeros(stack: "nn.Sequential", rate: float) -> None:
    """Replace our stochastic depth by timm's DropPath, in place."""
    from timm.layers import DropPath

    def zeroing(block: "nn.Module") -> "Callable[[Tensor], Tensor]":
        drop = DropPath(rate)

        def forward(tokens: "Tensor") -> "Tensor":
            tokens = tokens + drop(block.ls1(block.attn(block.norm1(tokens))))
            return tokens + drop(block.ls2(block.mlp(block.norm2(tokens))))

        return forward

    for block in stack:
        block.forward = zeroing(block)


def _step(stack: "nn.Sequential", tokens: "Tensor") -> "Step":
    import torch

    def step() -> None:
        stack.zero_grad(set_to_none=True)
        tokens.grad = None
        with torch.autocast(tokens.device.type, torch.bfloat16):
            result = stack(tokens)
        result.square().mean().backward()

    return step


def _kept_bytes(stack: "nn.Sequential", tokens: "Tensor") -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    import torch

    from tests.kept_bytes import kept_bytes

    with torch.autocast(tokens.device.type, torch.bfloat16):
        return kept_bytes(stack, lambda: stack(tokens))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under 30 s on two cores")
    parser.add_argument("--size", choices=VIT_SIZES, default="small", help="model size")
    parser.add_argument("--depth", type=positive, help="number of blocks; default: the size's")
    parser.add_argument("--rate", type=float, default=0.3, help="drop path rate")
    parser.add_argument("--batch", type=positive, help="samples per step")
    parser.add_argument("--tokens", type=positive, default=197, help="tokens per sample")
    parser.add_argument("--pairs", type=positive, help="turns per side")
    parser.add_argument("--threads", type=positive, help="torch threads; default: all cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    full = {"batch": 20, "pairs": 9}
    quick = {"batch": 10, "pairs": 5, "depth": 4}
    return with_defaults(arguments, quick if arguments.quick else full)


if __name__ == "__main__":
    main()
