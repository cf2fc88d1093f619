"""Multi-label validation: images may be of several classes, or of none."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.monitors.ranking import average_precision, mean_of
from ssl_vit.monitors.validation import BATCH, Validation
from ssl_vit.objectives.objective import Objective

# N validation images, n of them on this rank, C classes.


class Answers(NamedTuple):
    """Predictions for one rank's share of the images, on the CPU."""

    places: Tensor
    """(n,) their places among the images of all ranks."""
    logits: Tensor
    """(n, C) float32."""


class MultiLabelValidation(Validation):
    """As :class:`Validation`, with labels (N, C) bool; the best weights are those with the highest
    mean average precision.
    """

    ranked_by = "mean_average_precision"

    @torch.no_grad()
    def predict(self, objective: Objective, device: torch.device) -> Any:
        """:class:`Answers` for this rank's images."""
        batches = self.images.split(BATCH)
        found = [objective.logits(images.to(device)).float().cpu() for images in batches]
        return Answers(self.places, torch.cat(found))

    def measure(self, parts: Sequence[Any]) -> dict[str, float]:
        """`validation/…`: mean binary cross-entropy over images and classes; `accuracy`, the share
        of binary decisions that are right; and the mean over classes of the average precision
        (0 where no class has both).

        Args:
            parts: Of every rank.
        """
        logits = torch.empty(self.labels.shape)
        for part in parts:
            logits[part.places] = part.logits
        targets = self.labels.float()
        columns = zip(logits.numpy().T, self.labels.numpy().T, strict=True)
        precision = mean_of([average_precision(scores, own) for scores, own in columns])
        found = {
            "loss": float(F.binary_cross_entropy_with_logits(logits, targets)),
            "accuracy": float(((logits > 0) == self.labels).double().mean()),
            self.ranked_by: precision or 0.0,
        }
        return {f"validation/{name}": value for name, value in found.items()}
