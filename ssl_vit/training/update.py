"""One optimizer update: what its micro-batches were on this rank, and what it came to on all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.batches import Loaded
from ssl_vit.data.order import hash_words, splitmix64
from ssl_vit.distributed import Processes
from ssl_vit.objectives.objective import Observed, StepOutput
from ssl_vit.training.consensus import gather

_DIGEST_KEY = hash_words(102)
_LOW = 2**32 - 1


class Seconds(NamedTuple):
    """Where the time of an update went, averaged over ranks."""

    data: float
    """The host, waiting for the loader; a GPU may still be computing the micro-batch before."""
    forward_backward: float
    optimizer: float
    """With what ZeRO sends in it."""
    after_step: float
    """The objective's own: an EMA teacher."""


class GroupNorms(NamedTuple):
    """L2 norms over one parameter group, all ranks' parts together."""

    grad: float
    """Before clipping."""
    weight: float
    """After the update."""
    update: float
    """Of what was added to the weights, decay included."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer update did, averaged over micro-batches and ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    """Global L2 norm before clipping."""
    norms: dict[str, GroupNorms]
    """By parameter group; empty where they were not measured, or the update was not applied.
    """
    learning_rate: float
    weight_decay: float
    loss_scale: float
    """1 but in float16."""
    applied: bool
    """Whether the parameters moved; not where the loss or a gradient was not finite."""
    overflowed: bool
    """Whether it did not because the loss scale was too high for float16; the next is lower."""
    suspects: tuple[int, ...]
    """Where it was not: samples of micro-batches, on all ranks, without a finite loss; or all."""
    seconds: Seconds
    step_seconds: float
    """The whole update, on this rank; all ranks end it together."""
    peak_memory_bytes: int
    """The most of any rank so far: the device's, or on a CPU the process's."""
    samples: str
    """16 hex digits of the samples seen by all ranks, whatever their order."""
    bad: tuple[BadSample, ...]
    """Of all ranks: samples that could not be decoded and were replaced."""


@dataclass
class MicroBatches:
    """What the micro-batches of an update were, on this rank."""

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    """Loss and metrics of each."""
    observed: list[Observed] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    """Of their samples."""
    bad: list[BadSample] = field(default_factory=list)

    def add(self, loaded: Loaded, output: StepOutput) -> None:
        """One more, and what the objective made of it."""
        self.bad += loaded.bad
        self.numbers.append(loaded.batch.numbers)
        self.outputs.append({"loss": output.loss.detach(), **output.metrics})
        self.observed.append(output.observed)

    def means(self) -> dict[str, float]:
        """Loss and metrics, averaged; waits for the device once."""
        names = list(self.outputs[0])
        rows = [torch.stack([each[name].float() for name in names]) for each in self.outputs]
        return dict(zip(names, torch.stack(rows).mean(dim=0).tolist(), strict=True))

    def digest(self) -> int:
        """A digest free of order: the sum, modulo 2⁶⁴, of the samples' scrambled numbers."""
        numbers = torch.cat(self.numbers).cpu().numpy().astype(np.uint64)
        with np.errstate(over="ignore"):
            return int(splitmix64(numbers, _DIGEST_KEY).sum(dtype=np.uint64))

    def suspects(self, processes: Processes) -> tuple[int, ...]:
        """Samples of the micro-batches with a loss that is not finite, of all ranks; else all."""
        pairs = zip(self.numbers, self.outputs, strict=True)
        bad = [part for part, output in pairs if not torch.isfinite(output["loss"])]
        found = gather((_listed(bad), _listed(self.numbers)), processes)
        named = [number for part, _ in found for number in part]
        return tuple(named or [number for _, part in found for number in part])


@dataclass(frozen=True)
class Measured:
    """What is measured of an update, on one rank or over all."""

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


def over_ranks(
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


def _listed(parts: Sequence[Tensor]) -> list[int]:
    return [int(number) for part in parts for number in part]
