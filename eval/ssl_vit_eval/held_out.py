"""A part of train set aside, and what a learning rate is worth on it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_vit_eval.metrics import Interval, wilson_interval

# N images.


class HeldOutScore(NamedTuple):
    """One learning rate on the held-out part."""

    base_rate: float
    """Before scaling by batch/256."""
    accuracy: float
    """In [0, 1]."""
    loss: float
    """Mean cross-entropy, nats; not finite where the classifier diverged."""
    num_images: int
    """Images held out."""

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: the accuracy; among equals, the lower loss. Diverged comes last."""
        return (math.isfinite(self.loss), self.accuracy, -self.loss)

    @property
    def interval(self) -> Interval:
        """The accuracy's 95 % interval."""
        return wilson_interval(round(self.accuracy * self.num_images), self.num_images)

    def plain(self) -> dict[str, Any]:
        """For JSON, which knows no NaN: a classifier that diverged has no numbers."""
        if not math.isfinite(self.loss):
            return {"base_rate": self.base_rate, "accuracy": None, "loss": None}
        numbers = {"base_rate": self.base_rate, "accuracy": self.accuracy, "loss": self.loss}
        return numbers | {"interval_95": list(self.interval)}


def split_held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Set a share of every class aside.

    Args:
        labels: (N,) int64.
        share: In (0, 1); a class of two or more images gives at least one and keeps at least one.

    Returns:
        Sorted int64 places of the part to fit on, and of the held-out part; no place is in both.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def choose(scores: Sequence[HeldOutScore]) -> HeldOutScore:
    """The highest held-out accuracy; among equals, the lowest loss."""
    return max(scores, key=lambda score: score.rank)
