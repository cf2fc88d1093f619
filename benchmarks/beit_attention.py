"""What an additive bias costs attention, by implementation; a part of `beit_steps.py`.

Forward and backward pass of `softmax(q·k / √d + bias)·v`. The bias of relative positions is learned
and shared by the images of a batch, so it needs a gradient. Fused kernels may refuse that; torch
then takes another one without saying so.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from timing import Turn, repeated, take_turns, times_per_turn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# B images, G heads, K tokens, d features of a head.

BIASES = ("no bias", "constant bias", "learned bias")
_KERNELS = {
    "cpu": {"math": SDPBackend.MATH, "fused for CPUs": SDPBackend.FLASH_ATTENTION},
    "cuda": {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
    },
}
_WARM_UP = 3
_OWN_CHOICE = "torch's own choice"

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def print_attention(
    shape: tuple[int, int, int, int],
    device: Literal["cpu", "cuda"],
    rounds: int,
    synchronize: Callable[[], object],
) -> None:
    """A table of milliseconds by implementation, precision and kind of bias.

    Args:
        shape: B, G, K and d.
        device: Where to compute.
        rounds: Turns of each cell.
        synchronize: Waits for the device.
    """
    size = " × ".join(map(str, shape))
    print(f"\n| attention, {size}, ms | {' | '.join(BIASES)} | learned over none |")
    print("|---|---:|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        cells: dict[tuple[str, str], Turn] = {}
        times: dict[tuple[str, str], int] = {}
        for name, attend in _implementations(device):
            for kind in BIASES:
                work = _work(attend, shape, kind, dtype, device)
                try:
                    with warnings.catch_warnings(action="ignore"):  # why a kernel refuses
                        for _ in range(_WARM_UP):
                            work()
                except RuntimeError:
                    continue  # this kernel does not exist here, or not for this kind of bias
                once = repeated(work, 1, synchronize)().wall
                times[name, kind] = times_per_turn(once)
                cells[name, kind] = repeated(work, times[name, kind], synchronize)
        spent = dict(zip(cells, take_turns(list(cells.values()), rounds), strict=True))
        walls = {
            cell: [1000 * turn.wall / times[cell] for turn in turns]
            for cell, turns in spent.items()
        }
        for name, _ in _implementations(device):
            found = [walls.get((name, kind)) for kind in BIASES]
            shown = [f"{statistics.median(each):.1f}" if each else "refused" for each in found]
            ratio = "–"
            if found[0] and found[2]:
                pairs = [b / a for a, b in zip(found[0], found[2], strict=True)]
                ratio = f"{statistics.median(pairs):.3f}× ({min(pairs):.3f}–{max(pairs):.3f})"
            label = f"{str(dtype)[6:]}, {name}"
            print(f"| {label} | {' | '.join(shown)} | {ratio} |", flush=True)
    print(f"\n{_OWN_CHOICE}: {_choices(shape, torch.float32, device)}")


def _implementations(device: Literal["cpu", "cuda"]) -> Iterator[tuple[str, Attend]]:
    yield "plain products", _plain
    yield _OWN_CHOICE, _chosen(nullcontext)
    for name, backend in _KERNELS[device].items():
        yield name, _chosen(lambda backend=backend: sdpa_kernel(backend))


def _plain(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """As in `models/attention.py`."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ values


def _chosen(context: Callable[[], AbstractContextManager[object]]) -> Attend:
    """torch's attention, with the kernels of a context only."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        with context():
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)

    return attend


def _work(
    attend: Attend,
    shape: tuple[int, int, int, int],
    kind: str,
    dtype: torch.dtype,
    device: Literal["cpu", "cuda"],
) -> Callable[[], object]:
    """Forward and backward pass of one cell."""
    queries, keys, values, bias = drawn = _draw(shape, kind, dtype, device)
    wanted = [tensor for tensor in drawn if tensor is not None and tensor.requires_grad]
    gradient = torch.randn(shape, device=device).to(dtype)

    def work() -> object:
        return torch.autograd.grad(attend(queries, keys, values, bias), wanted, gradient)

    return work


def _draw(
    shape: tuple[int, int, int, int],
    kind: str,
    dtype: torch.dtype,
    device: Literal["cpu", "cuda"],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys and values, (B, G, K, d) as views of one projection, as in a ViT; and a bias of
    (1, G, K, K).
    """
    images, heads, tokens, width = shape
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(images, tokens, 3, heads, width, generator=generator)
    parts = projected.to(device, dtype).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys, values = (part.requires_grad_() for part in parts)
    if kind == "no bias":
        return queries, keys, values, None
    bias = torch.randn(1, heads, tokens, tokens, generator=generator).to(device, dtype)
    return queries, keys, values, bias.requires_grad_(kind == "learned bias")


def _choices(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: Literal["cpu", "cuda"]
) -> str:
    """Which kernel torch takes for each kind of bias."""
    names = {SDPBackend(backend).value: name for name, backend in _KERNELS[device].items()}
    chosen = {kind: torch._fused_sdp_choice(*_draw(shape, kind, dtype, device)) for kind in BIASES}
    return ", ".join(f"{kind}: {names.get(c, c)}" for kind, c in chosen.items())
