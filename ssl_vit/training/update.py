"""What goes into one optimizer update and what comes out of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ssl_vit.data.bad_sample import BadSample


class LoadedBatch(Protocol):
    """What the loader hands over."""

    @property
    def batch(self) -> Any:
        """A micro-batch as the objective takes it."""
        ...

    @property
    def bad(self) -> tuple[BadSample, ...]:
        """Its samples that could not be decoded and were replaced."""
        ...


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
