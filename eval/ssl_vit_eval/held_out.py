"""A held-out part of train, and the scores of learning rates on it."""

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
    """Learning rate before scaling by batch/256."""
    accuracy: float
    """Accuracy in [0, 1]."""
    loss: float
    """Mean cross-entropy in nats; not finite if the classifier diverged."""
    num_images: int
    """Number of held-out images."""

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: higher accuracy, then lower loss; diverged classifiers come last."""
        return (math.isfinite(self.loss), self.accuracy, -self.loss)

    @property
    def interval(self) -> Interval:
        """The accuracy's 95 % interval."""
        return wilson_interval(round(self.accuracy * self.num_images), self.num_images)

    def plain(self) -> dict[str, Any]:
        """The score for JSON, which has no NaN: a classifier that diverged has no numbers."""
        if not math.isfinite(self.loss):
            return {"base_rate": self.base_rate, "accuracy": None, "loss": None}
        numbers = {"base_rate": self.base_rate, "accuracy": self.accuracy, "loss": self.loss}
        return numbers | {"interval_95": list(self.interval)}


def split_held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a share of every class.

    Args:
        labels: (N,) int64 class numbers.
        share: In (0, 1); of a class with two or more images, at least one is held out and one kept.

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
