"""Validation: how well labeled images that are not trained on are classified, during a run.

It says which weights were the best so far and when there is nothing more to gain; both are
functions of `validations.jsonl`, so that a resumed run knows them too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.objectives.method import Validating
from ssl_vit.objectives.objective import Objective

# N validation images, n of them on this rank, C classes.

BATCH = 64
"""Images per forward pass."""
_TOP = 5


class Predicted(NamedTuple):
    """Predictions for one rank's share of the images, on the CPU."""

    places: Tensor
    """(n,) their places among the images of all ranks."""
    classes: Tensor
    """(n,) int64 predicted classes."""
    losses: Tensor
    """(n,) float32 cross-entropies in nats."""
    in_top: Tensor
    """(n,) bool, whether the label is among the five largest logits."""


class Validation:
    """This rank's share of the validation images, decoded once and kept as uint8.

    Args:
        images: (n, 3, H, W) uint8; n is the same on all ranks.
        places: (n,) where they stand among those of all ranks.
        labels: (N,) int64 classes of all ranks' images.
        num_classes: C.
        settings: How often, and when to stop.
    """

    ranked_by: ClassVar[str] = "balanced_accuracy"
    """The measure whose highest value is the best."""

    def __init__(
        self,
        images: Tensor,
        places: Tensor,
        labels: np.ndarray,
        num_classes: int,
        settings: Validating,
    ) -> None:
        self.images, self.places, self.num_classes = images, places, num_classes
        self.labels = torch.from_numpy(labels)
        self.settings, self.every_steps = settings, settings.every_steps
        self.best_step = 0
        """Number of steps made at the best validation so far; 0: there was none."""
        self._best: tuple[float, float] = (float("-inf"), float("-inf"))
        self._since_best = 0

    @torch.no_grad()
    def predict(self, objective: Objective, device: torch.device) -> Any:
        """What :meth:`measure` needs of this rank's images (here :class:`Predicted`); the objective
        is in evaluation mode.
        """
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        labels = self.labels[self.places]
        for images, wanted in zip(self.images.split(BATCH), labels.split(BATCH), strict=True):
            logits = objective.logits(images.to(device)).float().cpu()
            losses = F.cross_entropy(logits, wanted, reduction="none")
            largest = logits.topk(min(_TOP, self.num_classes), dim=1).indices
            found.append((logits.argmax(dim=1), losses, (largest == wanted[:, None]).any(dim=1)))
        return Predicted(self.places, *map(torch.cat, zip(*found, strict=True)))

    def measure(self, parts: Sequence[Any]) -> dict[str, float]:
        """`validation/…`: mean cross-entropy; accuracy, mean recall of the classes that have
        images, and the share of labels among the five largest logits, in [0, 1].

        Args:
            parts: Of every rank.
        """
        predicted = torch.empty_like(self.labels)
        losses, in_top = torch.empty(len(self.labels)), torch.empty(len(self.labels))
        for part in parts:
            predicted[part.places] = part.classes
            losses[part.places], in_top[part.places] = part.losses, part.in_top.float()
        right = (predicted == self.labels).double()
        support = self.labels.bincount(minlength=self.num_classes)
        hits = self.labels.bincount(right, minlength=self.num_classes)
        tested = support > 0
        found = {
            "loss": float(losses.double().mean()),
            "accuracy": float(right.mean()),
            "balanced_accuracy": float((hits[tested] / support[tested]).mean()),
        }
        if self.num_classes > _TOP:
            found["top5_accuracy"] = float(in_top.double().mean())
        return {f"validation/{name}": value for name, value in found.items()}

    def judge(self, made: int, measures: Mapping[str, Any]) -> bool:
        """Whether these are the best measures so far: the highest value of `ranked_by`, and among
        equals the lowest loss.

        Args:
            made: Number of steps made.
            measures: From :meth:`measure`; a loss that is not finite may be missing.
        """
        loss = measures.get("validation/loss")
        loss = float("inf") if loss is None or loss != loss else loss
        rank = (float(measures[f"validation/{self.ranked_by}"]), -loss)
        is_best = rank > self._best
        if is_best:
            self._best, self.best_step, self._since_best = rank, made, 0
        else:
            self._since_best += 1
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether the run should stop: as many validations as it has patience brought nothing
        better.
        """
        return 0 < self.settings.patience <= self._since_best
