"""The results of a protocol: rows, kinds of features, scores. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit_eval.metrics import Interval, Scores
from ssl_vit_eval.overlap import Overlap

PRETRAINED = "pre-trained"
RANDOM = "random initialization"
PIXELS = "raw pixels"


@dataclass(frozen=True)
class KindResult:
    """The result of one kind of feature."""

    kind: str
    """`cls`, `mean` or `pixels`."""
    setting: str
    """The chosen setting, e.g. `k=20`."""
    accuracy: float | None
    """Test accuracy in [0, 1]; None if another kind was better on the held-out part."""
    held_out: float | None = None
    """Accuracy in [0, 1] on the held-out part of train; None in protocols without one."""
    details: dict[str, Any] = field(default_factory=dict)
    """All further numbers, for the JSON."""
    held_out_interval: Interval | None = None
    """Wilson's 95 % interval of ``held_out``."""
    scores: Scores | None = None
    """All test scores; None if ``accuracy`` is."""


@dataclass(frozen=True)
class RowResult:
    """One row of the comparison."""

    name: str
    kinds: tuple[KindResult, ...]

    @property
    def best(self) -> KindResult:
        """The kind of feature with the highest test accuracy among those tested."""
        tested = [result for result in self.kinds if result.accuracy is not None]
        return max(tested, key=lambda result: result.accuracy or 0.0)

    @property
    def accuracy(self) -> float:
        """The row's accuracy in [0, 1]."""
        return self.best.accuracy or 0.0


@dataclass(frozen=True)
class Evaluation:
    """A protocol's name and settings, its rows, and notes."""

    protocol: str
    """`knn` or `linear`; begins the result's file name."""
    settings: dict[str, Any]
    rows: tuple[RowResult, ...]
    majority: Scores
    """Test scores of always predicting train's most frequent class."""
    notes: tuple[str, ...]
    overlap: Overlap | None
    """Test images that are also in train; None if they were not searched for."""
