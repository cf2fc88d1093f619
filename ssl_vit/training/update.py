"""One optimizer step: its micro-batches on this rank, and its result over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.batches import BadSample, Loaded
from ssl_vit.data.order import hash_words, splitmix64
from ssl_vit.distributed import Processes
from ssl_vit.objectives.objective import Observed, StepOutput
from ssl_vit.training.consensus import gather

_DIGEST_KEY = hash_words(102)
_LOW = 2**32 - 1


class Seconds(NamedTuple):
    """Time of a step by phase, averaged over ranks."""

    data: float
    """Time that the host waits for the loader; a GPU may still be computing the previous
    micro-batch.
    """
    forward_backward: float
    optimizer: float
    """Time of the optimizer, including ZeRO's communication in it."""
    after_step: float
    """Time of the objective's own update after the step, such as that of an EMA teacher."""


class GroupNorms(NamedTuple):
    """L2 norms over one parameter group, all ranks' parts together."""

    grad: float
    """Norm of the gradients before clipping."""
    weight: float
    """Norm of the weights after the step."""
    update: float
    """Norm of the change of the weights, including weight decay."""


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, averaged over micro-batches and ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    """Global L2 norm before clipping."""
    norms: dict[str, GroupNorms]
    """Norms by parameter group; empty if they were not measured or the step was not applied."""
    learning_rate: float
    weight_decay: float
    loss_scale: float
    """Loss scale; 1 except in float16."""
    applied: bool
    """Whether the weights were updated; they are not if the loss or a gradient is not finite."""
    overflowed: bool
    """Whether they were not because the loss scale was too high for float16; the next is lower."""
    suspects: tuple[int, ...]
    """If the step was not applied: the samples, on all ranks, of micro-batches without a finite
    loss; or all samples if there are none.
    """
    seconds: Seconds
    step_seconds: float
    """Time of the whole step on this rank; all ranks end it together."""
    peak_memory_bytes: int
    """Peak memory of any rank so far: of the device, or on a CPU of the process."""
    samples: str
    """Digest of the samples seen by all ranks in any order, 16 hex digits."""
    bad: tuple[BadSample, ...]
    """Samples of all ranks that could not be decoded and were replaced."""


@dataclass
class MicroBatches:
    """The micro-batches of a step on this rank."""

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    """Loss and metrics of each."""
    observed: list[Observed] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    """Sample numbers of each."""
    bad: list[BadSample] = field(default_factory=list)

    def add(self, loaded: Loaded, output: StepOutput) -> None:
        """Add a micro-batch and the objective's output for it."""
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
        """A digest that ignores order: the sum, modulo 2⁶⁴, of the samples' hashed numbers."""
        numbers = torch.cat(self.numbers).cpu().numpy().astype(np.uint64)
        with np.errstate(over="ignore"):
            return int(splitmix64(numbers, _DIGEST_KEY).sum(dtype=np.uint64))

    def suspects(self, processes: Processes) -> tuple[int, ...]:
        """The samples, on all ranks, of micro-batches with a non-finite loss; all if there are
        none.
        """
        pairs = zip(self.numbers, self.outputs, strict=True)
        bad = [part for part, output in pairs if not torch.isfinite(output["loss"])]
        found = gather((_listed(bad), _listed(self.numbers)), processes)
        named = [number for part, _ in found for number in part]
        return tuple(named or [number for _, part in found for number in part])


@dataclass(frozen=True)
class Measured:
    """What is measured in a step, on one rank or over all."""

    means: dict[str, float]
    """Means of loss and metrics over micro-batches, and over ranks once they are reduced."""
    squares: Tensor
    """(groups, 3) float64 on the CPU, as returned by `NormMeter`."""
    seconds: Seconds
    peak_memory_bytes: int
    """Peak memory of any rank."""
    digest: int
    """Digest of the samples, 64 bits; over ranks the sum of theirs modulo 2⁶⁴."""
    num_bad: int
    """Number of samples that were replaced."""


def over_ranks(
    mine: Measured, processes: Processes, device: torch.device, is_sharded: bool
) -> Measured:
    """Means, sums and maxima over all ranks; the same on each.

    Args:
        mine: What this rank measured.
        processes: This rank among all.
        device: Device on which the ranks exchange tensors.
        is_sharded: Whether each rank has a different part of every parameter group.
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
    high, low, num_bad = map(int, rest[:, num_seconds + 1 :].sum(dim=0).tolist())
    return Measured(
        means=dict(zip(mine.means, means.mean(dim=0).tolist(), strict=True)),
        squares=(squares.sum(dim=0) if is_sharded else squares[0]).view_as(mine.squares),
        seconds=Seconds(*rest[:, :num_seconds].mean(dim=0).tolist()),
        peak_memory_bytes=int(max(rest[:, num_seconds].tolist())),
        digest=((high << 32) + low) % 2**64,
        num_bad=num_bad,
    )


def _listed(parts: Sequence[Tensor]) -> list[int]:
    return [int(number) for part in parts for number in part]
