"""The one exchange of an update: what every rank measured, and what follows for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_vit.distributed import Processes
from ssl_vit.training.update import Seconds

_LOW = 2**32 - 1


@dataclass(frozen=True)
class Measured:
    """Of an update."""

    means: dict[str, float]
    """Loss and metrics, over micro-batches; over ranks too once they are exchanged."""
    squares: Tensor
    """(groups, 3) float64 on the CPU, as `NormMeter` gives them."""
    seconds: Seconds
    peak_memory_bytes: int
    """The most of any rank."""
    digest: int
    """Of the samples, 64 bits; their sum, modulo 2⁶⁴, over ranks."""
    num_bad: int
    """Samples that were replaced."""


def mean_of(outputs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means over micro-batches; waits for the device once."""
    names = list(outputs[0])
    values = torch.stack([torch.stack([each[name].float() for name in names]) for each in outputs])
    return dict(zip(names, values.mean(dim=0).tolist(), strict=True))


def exchange(
    mine: Measured, processes: Processes, device: torch.device, is_sharded: bool
) -> Measured:
    """Averages, sums and maxima over all ranks; the same on each.

    Args:
        mine: What this rank measured.
        processes: Its place.
        device: Where the ranks exchange tensors.
        is_sharded: Whether each rank has another part of every parameter group.
    """
    if processes.world_size == 1:
        return mine
    # The digest in halves: a float64 holds sums of 32 bits exactly.
    counts = [mine.digest >> 32, mine.digest & _LOW, mine.num_bad]
    parts = (
        torch.tensor(list(mine.means.values()), dtype=torch.float64),
        mine.squares.flatten(),
        torch.tensor([*mine.seconds, mine.peak_memory_bytes, *counts], dtype=torch.float64),
    )
    row = torch.cat(parts).to(device)
    everyone = row.new_empty(processes.world_size * len(row))
    torch.distributed.all_gather_into_tensor(everyone, row)
    rows = everyone.view(processes.world_size, -1).cpu()
    means, squares, rest = rows.split([len(part) for part in parts], dim=1)
    num_seconds = len(Seconds._fields)
    high, low, num_bad = (int(count) for count in rest[:, num_seconds + 1 :].sum(dim=0))
    return Measured(
        means=dict(zip(mine.means, means.mean(dim=0).tolist(), strict=True)),
        squares=(squares.sum(dim=0) if is_sharded else squares[0]).view_as(mine.squares),
        seconds=Seconds(*rest[:, :num_seconds].mean(dim=0).tolist()),
        peak_memory_bytes=int(rest[:, num_seconds].max()),
        digest=((high << 32) + low) % 2**64,
        num_bad=num_bad,
    )
