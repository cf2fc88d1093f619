"""A linear classifier on frozen, cached features: a grid of learning rates in one matrix product.

Learning rate and kind of feature are chosen on a held-out tenth of *train*; the test set is used
once, at the end. (DINOv2 reports the best of its grid on the validation set.)
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.errors import UserError
from ssl_vit.progress import progress
from ssl_vit_eval.baselines import Comparison, Split
from ssl_vit_eval.held_out import HeldOutScore, choose, split_held_out
from ssl_vit_eval.metrics import score
from ssl_vit_eval.results import Evaluation, KindResult, RowResult

# N images, B of a batch, D features, C classes, G learning rates.

# DINOv2's grid (Oquab et al. 2023, arXiv 2304.07193, appendix B.3), each times batch/256, and three
# more: 0.1 suffices for their 12,500 steps, but in the few hundred steps of a small set, a ViT's
# features did best at 0.2 to 1 (ELPV: held-out accuracy 2 to 7 points higher); raw pixels did not.
BASE_RATES = (
    *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    *(0.2, 0.5, 1.0),
)
HELD_OUT_SHARE = 0.1
MOMENTUM = 0.9
# He et al. 2021, arXiv 2111.06377, appendix A.1: BatchNorm without affine before the classifier.
EPSILON = 1e-6
INIT_STD = 0.01
# Multiply-adds of one step below which a second thread waits longer than it works: with another
# program on the machine, two threads were measured ten times slower than one.
_WORTH_THREADS = 2**27
_ROWS = 1024  # images whose logits are held at once


@dataclass(frozen=True)
class LinearSettings:
    """Settings of the classifiers' training."""

    epochs: int = 100
    """Passes over the train set."""
    batch_size: int = 256
    """Images per step; a smaller set is one batch."""
    seed: int = 0
    """Seed of the held-out part, the initial weights and the order of the batches."""


class LinearHeads(NamedTuple):
    """G classifiers side by side."""

    weight: Tensor
    """(D, G, C)."""
    bias: Tensor
    """(G, C)."""


def standardize(train: Tensor, other: Tensor) -> Split:
    """Shift and scale both by train's mean and variance, as BatchNorm without affine would."""
    variance, mean = torch.var_mean(train, dim=0, correction=0)
    scale = (variance + EPSILON).rsqrt()
    return Split((train - mean) * scale, (other - mean) * scale)


def draw_batches(num_images: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """(B,) int64 places of the images of each step; an epoch's incomplete last batch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(num_images, generator=generator)
        for first in range(0, num_images - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def train_heads(
    features: Tensor,
    labels: Tensor,
    base_rates: Sequence[float],
    num_classes: int,
    settings: LinearSettings,
) -> LinearHeads:
    """Softmax regression by SGD with momentum and a cosine schedule to 0, for every learning rate.

    All classifiers have the same batches and initial weights, so their logits are one
    (B, D) × (D, G·C) product, and each ends as if it had been trained alone.

    Args:
        features: (N, D) float32, standardized.
        labels: (N,) int64 in [0, num_classes), on the same device.
        base_rates: (G,) learning rates at a batch of 256.
    """
    batch_size = min(settings.batch_size, len(features))
    total_steps = settings.epochs * (len(features) // batch_size)
    width, grid = features.shape[1], len(base_rates)
    device = features.device
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.randn(width, 1, num_classes, generator=generator) * INIT_STD
    weight = start.expand(-1, grid, -1).reshape(width, grid * num_classes).to(device)
    bias = torch.zeros(grid * num_classes, device=device)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    # (G·C,) peak rate of every column.
    peak = torch.tensor(base_rates, device=device).repeat_interleave(num_classes) * batch_size / 256
    batches = draw_batches(len(features), batch_size, settings.epochs, settings.seed)
    with _threads_for(batch_size * weight.numel()):
        for step, places in enumerate(batches):
            places = places.to(device)
            inputs, targets = features[places], F.one_hot(labels[places], num_classes)
            logits = torch.addmm(bias, inputs, weight).view(batch_size, grid, num_classes)
            # The gradient of the mean cross-entropy in closed form, without an autograd graph.
            slope = ((logits.softmax(dim=-1) - targets.unsqueeze(1)) / batch_size).flatten(1)
            weight_velocity.addmm_(inputs.T, slope, beta=MOMENTUM)
            bias_velocity.mul_(MOMENTUM).add_(slope.sum(dim=0))
            decay = 0.5 * (1 + math.cos(math.pi * step / total_steps))
            weight.addcmul_(weight_velocity, peak, value=-decay)
            bias.addcmul_(bias_velocity, peak, value=-decay)
    return LinearHeads(weight.view(width, grid, num_classes), bias.view(grid, num_classes))


@contextlib.contextmanager
def _threads_for(multiply_adds: int) -> Iterator[None]:
    """One thread if the products are small, otherwise all of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if multiply_adds < _WORTH_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(heads: LinearHeads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(G,) accuracy in [0, 1] and (G,) mean cross-entropy of the heads, float64 on the CPU; the
    cross-entropy of a head that diverged is not finite.
    """
    grid = len(heads.bias)
    right = torch.zeros(grid, dtype=torch.float64)
    loss = torch.zeros(grid, dtype=torch.float64)
    for logits, targets in zip(_logits(heads, features), labels.split(_ROWS), strict=True):
        right += (logits.argmax(dim=-1) == targets.unsqueeze(1)).double().sum(dim=0).cpu()
        of_target = logits.log_softmax(dim=-1).gather(
            -1, targets.view(-1, 1, 1).expand(-1, grid, 1)
        )
        loss -= of_target.double().sum(dim=(0, 2)).cpu()
    return right / len(features), loss / len(features)


def predict(heads: LinearHeads, features: Tensor) -> Tensor:
    """(N,) int64 class numbers by the first head, on the features' device.

    Raises:
        FloatingPointError: A logit is not finite.
    """
    found = []
    for logits in _logits(heads, features):
        if not torch.isfinite(logits).all():
            raise FloatingPointError("a logit is not finite")
        found.append(logits[:, 0].argmax(dim=-1))
    return torch.cat(found)


def _logits(heads: LinearHeads, features: Tensor) -> Iterator[Tensor]:
    """(n, G, C) logits of successive parts of the features."""
    weight, bias = heads.weight.flatten(1), heads.bias.flatten()
    for some in features.split(_ROWS):
        yield torch.addmm(bias, some, weight).view(len(some), *heads.bias.shape)


def try_rates(
    features: Tensor, labels: Tensor, num_classes: int, settings: LinearSettings
) -> list[HeldOutScore]:
    """Train with every learning rate on nine tenths of these images, and test on the last tenth.

    Args:
        features: (N, D) float32, not yet standardized.
        labels: (N,) int64, on the same device.

    Raises:
        ValueError: No class has two images, so none can be held out.
    """
    fit, held_out = split_held_out(labels.cpu(), HELD_OUT_SHARE, settings.seed)
    if not len(held_out):
        raise ValueError("no class has two images: none can be held out")
    fit, held_out = fit.to(labels.device), held_out.to(labels.device)
    split = standardize(features[fit], features[held_out])
    heads = train_heads(split.train, labels[fit], BASE_RATES, num_classes, settings)
    accuracy, loss = measure(heads, split.test, labels[held_out])
    return [
        HeldOutScore(*numbers, len(held_out))
        for numbers in zip(BASE_RATES, accuracy.tolist(), loss.tolist(), strict=True)
    ]


def probe(
    kinds: dict[str, Split],
    train_labels: Tensor,
    test_labels: Tensor,
    num_classes: int,
    settings: LinearSettings,
) -> tuple[KindResult, ...]:
    """One row: choose rate and kind of feature on train alone, fit on all of train, test once.

    Args:
        kinds: Kind → features, on the labels' device.
        train_labels: (N,) int64 class numbers.
        test_labels: (M,) int64 class numbers.

    Raises:
        UserError: The classifiers of every learning rate diverge.
    """
    tried = {
        kind: try_rates(split.train, train_labels, num_classes, settings)
        for kind, split in kinds.items()
    }
    chosen = {kind: choose(scores) for kind, scores in tried.items()}
    counts = max(chosen, key=lambda kind: chosen[kind].rank)
    split = standardize(*kinds[counts])
    rate = chosen[counts].base_rate
    heads = train_heads(split.train, train_labels, [rate], num_classes, settings)
    try:
        predictions = predict(heads, split.test)
    except FloatingPointError:
        raise UserError(
            f"the linear probe diverged at learning rate {rate:g}: its logits are not finite",
            "evaluate these features with  ssl-vit eval knn",
        ) from None
    scores = score(test_labels.cpu().numpy(), predictions.cpu().numpy(), num_classes)
    return tuple(
        KindResult(
            kind,
            f"lr={chosen[kind].base_rate:g}",
            scores.accuracy if kind == counts else None,
            chosen[kind].accuracy,
            {"held_out_by_rate": [each.plain() for each in found]},
            chosen[kind].interval,
            scores if kind == counts else None,
        )
        for kind, found in tried.items()
    )


def evaluate(comparison: Comparison, device: torch.device, settings: LinearSettings) -> Evaluation:
    """A linear probe of every row."""
    train_labels = comparison.train_labels.to(device)
    test_labels = comparison.test_labels.to(device)
    results = []
    with progress("linear probes", len(comparison.rows), "rows") as advance:
        for name, kinds in comparison.rows.items():
            on_device = {
                kind: Split(split.train.to(device), split.test.to(device))
                for kind, split in kinds.items()
            }
            found = probe(on_device, train_labels, test_labels, comparison.num_classes, settings)
            results.append(RowResult(name, found))
            advance(1)
    described = asdict(settings) | {
        "base_rates": list(BASE_RATES),
        "momentum": MOMENTUM,
        "weight_decay": 0.0,
        "held_out_share": HELD_OUT_SHARE,
        "chosen_on": "held-out part of train",
    }
    notes = (*_notes(comparison.train_labels, settings), *_diverged(results))
    return Evaluation(
        "linear", described, tuple(results), comparison.majority, notes, comparison.overlap
    )


def _notes(train_labels: Tensor, settings: LinearSettings) -> list[str]:
    """Notes on how rate and kind of feature were chosen, and on how many images."""
    held_out = split_held_out(train_labels, HELD_OUT_SHARE, settings.seed)[1]
    images = "1 image" if len(held_out) == 1 else f"{len(held_out):,} images"
    notes = [
        "* result of the row: kind of feature and learning rate (at a batch of 256) were chosen on "
        f"a held-out tenth of train ({images}); the test set was used once."
    ]
    counts = train_labels.bincount()
    if alone := int((counts == 1).sum()):
        notes.append(
            f"Train classes with a single image, which is never held out: {alone:,}; the choice "
            f"was made on the other {int((counts > 1).sum()):,}."
        )
    return notes


def _diverged(rows: Sequence[RowResult]) -> list[str]:
    """Notes on learning rates that diverged."""
    return [
        f"{count} of {len(BASE_RATES)} learning rates diverged on {row.name} ({kind.kind}) and "
        "were not chosen."
        for row in rows
        for kind in row.kinds
        if (count := sum(each["loss"] is None for each in kind.details["held_out_by_rate"]))
    ]
