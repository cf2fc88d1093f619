"""What the engine measures in a step: time by phase, norms by parameter group, memory."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.cost.devices import recognize
from ssl_vit.cost.network import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_STATUS = Path("/proc/self/status")
_PEAK_SECONDS = 0.3  # duration of a measurement of the peak

# Elements processed together: on a CPU as many as fit its caches, on a GPU enough that few kernels
# are launched.
_CHUNK = {"cpu": 2**18, "cuda": 2**22}


class PhaseClock:
    """Seconds of a step by phase; on a GPU measured by its events, without waiting for it.

    Phases have the same names in profiles.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str, on_host: bool = False) -> Iterator[None]:
        """Time the body of a ``with`` block.

        Args:
            name: Name of the phase; times under the same name are added up.
            on_host: Whether to measure the host's time even on a GPU, such as waiting for data.
        """
        with torch.profiler.record_function(name):
            if self.on_gpu and not on_host:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                yield
                last.record()
                self._events.append((name, first, last))
            else:
                began = time.perf_counter()
                yield
                self._add(name, time.perf_counter() - began)

    def take(self) -> dict[str, float]:
        """The seconds of all phases since the last call; waits for the GPU."""
        for name, first, last in self._events:
            last.synchronize()
            self._add(name, first.elapsed_time(last) / 1e3)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class NormMeter:
    """Sums of squares of gradients, weights and weight updates of AdamW over each parameter group.

    It measures the optimizer inside DeepSpeed's, which at ZeRO 1 to 3 has this rank's part of each
    group, once for every part; nothing is gathered.

    Args:
        optimizer: torch's AdamW; its groups have a ``name``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.names = [group["name"] for group in optimizer.param_groups]
        self.enabled = True
        """Whether to measure the next step; costs about as much as the step itself."""
        self._sums: dict[str, Tensor] = {}
        optimizer.register_step_post_hook(self._look)

    def take(self) -> Tensor:
        """(groups, 3) float64 on the CPU: squared norms of gradients, weights and weight updates
        in this rank's part, since the last call.
        """
        sums, self._sums = self._sums, {}
        nothing = torch.zeros(3)
        return torch.stack([sums.get(name, nothing).cpu() for name in self.names]).double()

    @torch.no_grad()
    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.enabled:
            return
        for group in optimizer.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for chunk in _chunks(trained, optimizer):
                found = _squares(chunk, group)
                name = group["name"]
                self._sums[name] = self._sums[name] + found if name in self._sums else found


def peak_memory(device: torch.device) -> int:
    """Peak number of bytes in use so far: GPU memory used by torch, or host memory used by this
    process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        # Not getrusage: a process inherits its peak from the process that started it.
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_flops(device: torch.device, precision: Precision, tf32: bool) -> float:
    """Peak operations per second of a process: from the data sheet of a known GPU, otherwise the
    best of a few large matrix products, measured now.
    """
    if device.type == "cuda" and (known := recognize(torch.cuda.get_device_name(device))):
        return known.peak_flops(precision, tf32)
    # The better of the two: a CPU may be slower in half precision than in float32.
    precisions: set[Precision] = {precision, "float32"}
    return max(_measured_peak(device, each) for each in precisions)


def _measured_peak(device: torch.device, precision: Precision) -> float:
    side = 4096 if device.type == "cuda" else 1024
    left, right = torch.rand(2, side, side, device=device, dtype=DTYPES[precision])
    clock, best, until = PhaseClock(device), math.inf, time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < until:
        with clock.phase("product"):
            torch.mm(left, right)
        best = min(best, clock.take()["product"])
    return 2 * side**3 / best


Chunk = list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def _chunks(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[Chunk]:
    """(weights, gradients, first and second moments, steps so far), cut into chunks."""
    chunk: Chunk = []
    size = room = _CHUNK[parameters[0].device.type] if parameters else 0
    for parameter in parameters:
        state = optimizer.state[parameter]
        whole = (parameter.data, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        flat = [tensor.reshape(-1) for tensor in whole]  # type: ignore[union-attr] - has a gradient
        for start in range(0, len(flat[0]), size):
            weight, grad, first, second = (tensor[start : start + size] for tensor in flat)
            chunk.append((weight, grad, first, second, state["step"]))
            room -= len(weight)
            if room <= 0:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _squares(chunk: Chunk, group: dict[str, Any]) -> Tensor:
    """(3,) sums of squares. The weight update is computed from the moments: it cannot be recovered
    from the weights afterwards, and a copy from before the step would cost memory.
    """
    weights, grads, firsts, seconds, steps = map(list, zip(*chunk, strict=True))
    (beta1, beta2), rate = group["betas"], float(group["lr"])
    # The same for all; left as a tensor, because reading it would wait for a GPU. AdamW keeps it on
    # the CPU if it is not fused.
    count = steps[0].to(weights[0].device, non_blocking=True)
    # decay · w + m̂ / (√v̂ + ε), with w before the step: w_before = (w + rate · u) / (1 − rate · λ)
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_div_(denominators, (1 - beta2**count).sqrt())
    torch._foreach_add_(denominators, group["eps"])
    updates = torch._foreach_div(firsts, denominators)
    torch._foreach_div_(updates, 1 - beta1**count)
    decay = group["weight_decay"]
    if decay:
        torch._foreach_add_(updates, weights, alpha=decay)
    scale = rate / (1 - rate * decay)
    found = [torch.stack(torch._foreach_norm(each)).square().sum() for each in (grads, weights)]
    changed = torch.stack(torch._foreach_norm(updates)).square().sum() * scale**2
    return torch.stack([*found, changed])
