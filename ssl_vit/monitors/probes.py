"""k-NN and a linear probe on labeled images during a run.

A curve to watch, not a result to quote: few images, one k, and a least-squares classifier, so that
it is fast. `ssl-vit eval` has the protocols.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.monitors.knn import TEMPERATURE, knn_accuracy
from ssl_vit.objectives.objective import Objective

# N labeled images, n of them on this rank, D features, C classes.

NEIGHBORS = 20
_BATCH = 64
# Ridge penalties, times the mean eigenvalue of the features' covariance.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Probed(NamedTuple):
    """Features of one rank's share of the labeled images."""

    places: Tensor
    """(n,) their places among the images of all ranks."""
    features: Tensor
    """(n, 2, D) float32 on the CPU: class token, and mean of the patches."""


class LabeledImages(NamedTuple):
    """One rank's share of labeled images, and the labels of all."""

    images: Tensor
    """(n, 3, H, W) uint8; n is the same on all ranks."""
    places: Tensor
    """(n,) where they stand among those of all ranks."""
    labels: Tensor
    """(N,) int64 of all ranks' images: train, then test."""
    num_train: int
    num_classes: int


class Probe:
    """This rank's share of labeled images, decoded once and kept as uint8.

    Args:
        labeled: The images.
        every_steps: Updates between two probes.
    """

    def __init__(self, labeled: LabeledImages, every_steps: int) -> None:
        self.every_steps = every_steps
        self.images, self.places, self.labels, self.num_train, self.num_classes = labeled

    @torch.no_grad()
    def encode(self, objective: Objective, device: torch.device) -> Probed:
        """Features that an export would have now; the objective is in evaluation mode."""
        backbone, found = objective.exported_backbone, []
        for some in self.images.split(_BATCH):
            features = backbone(objective.pixel_scale(some.to(device)))
            both = torch.stack([features.cls, features.patches.mean(dim=1)], dim=1)
            found.append(both.float().cpu())
        return Probed(self.places, torch.cat(found))

    def accuracies(self, parts: Sequence[Probed]) -> dict[str, float]:
        """`probe/PROTOCOL_KIND` → share in [0, 1] of test images classified correctly; empty if
        features are not finite, or so large that their norm is not.

        Args:
            parts: The features of every rank.
        """
        features = torch.empty(len(self.labels), *parts[0].features.shape[1:])
        for places, values in parts:
            features[places] = values
        # float16 sometimes overflows; bfloat16 reaches numbers whose squares overflow float32.
        if not torch.isfinite(features.norm(dim=-1)).all():
            return {}
        cut, labels = self.num_train, self.labels
        k = min(NEIGHBORS, cut)
        found: dict[str, float] = {}
        for place, kind in enumerate(("cls", "mean")):
            split = (features[:cut, place], labels[:cut], features[cut:, place], labels[cut:])
            by_k = knn_accuracy(*split, [k], TEMPERATURE, self.num_classes)
            found[f"probe/knn_{kind}"] = by_k[k]
            found[f"probe/linear_{kind}"] = linear_accuracy(*split, self.num_classes)
        return found


def linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int
) -> float:
    """Accuracy in [0, 1] of a ridge regression on one-hot labels; the penalty is chosen by leaving
    out each train image once, in closed form (Hastie et al. 2009, equation 7.52).

    Args:
        train: (N, D) float.
        train_labels: (N,) int64 in [0, num_classes).
        test: (M, D) float.
        test_labels: (M,) int64.
    """
    mean = train.double().mean(dim=0)
    rows, others = train.double() - mean, test.double() - mean
    targets = F.one_hot(train_labels, num_classes).double()
    offset = targets.mean(dim=0)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values = values.clamp(min=0)
    turned = rows @ vectors
    projected = turned.T @ (targets - offset)
    best, weights = -1.0, projected
    for ridge in _RIDGES:
        # tiny: features that are all the same have no covariance at all.
        inverse = 1 / (values + ridge * values.mean() + torch.finfo(values.dtype).tiny)
        fitted = turned @ (inverse.unsqueeze(1) * projected)
        leverage = (turned.square() * inverse).sum(dim=1, keepdim=True) + 1 / len(rows)
        without = (fitted - leverage * (targets - offset)) / (1 - leverage).clamp(min=1e-9)
        right = float(((offset + without).argmax(dim=1) == train_labels).double().mean())
        if right > best:
            best, weights = right, vectors @ (inverse.unsqueeze(1) * projected)
    scores = others @ weights + offset
    return float((scores.argmax(dim=1) == test_labels).double().mean())


def summary(measures: Mapping[str, float]) -> str:
    """For a progress line, in percent: validation, and each protocol's better kind of feature."""
    parts = []
    if "validation/mean_average_precision" in measures:
        precision = 100 * measures["validation/mean_average_precision"]
        parts.append(f"validation: mean average precision {precision:.1f} %")
    elif "validation/accuracy" in measures:
        right, balanced = (
            100 * measures[f"validation/{name}"] for name in ("accuracy", "balanced_accuracy")
        )
        parts.append(f"validation {right:.1f} % (balanced {balanced:.1f} %)")
    best = {
        title: max(values)
        for title, protocol in (("k-NN", "knn"), ("linear", "linear"))
        if (values := [value for name, value in measures.items() if f"/{protocol}_" in name])
    }
    if best:
        named = ", ".join(f"{title} {100 * value:.1f} %" for title, value in best.items())
        parts.append(f"{named} (online)")
    return ", ".join(parts)
