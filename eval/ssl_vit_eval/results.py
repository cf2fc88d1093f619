"""What a protocol hands over: rows, kinds of features, numbers. No torch."""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit_eval.metrics import Interval, Scores
from ssl_vit_eval.overlap import Overlap

PRETRAINED = "pre-trained"
RANDOM = "random initialization"
PIXELS = "raw pixels"


@dataclass(frozen=True)
class KindResult:
    """How one kind of feature did."""

    kind: str
    """`cls`, `mean` or `pixels`."""
    setting: str
    """What was chosen for it, e.g. `k=20`."""
    accuracy: float | None
    """On test, in [0, 1]; None where the held-out part preferred another kind."""
    held_out: float | None = None
    """On the held-out part of train, in [0, 1]; None in protocols without one."""
    details: dict[str, Any] = field(default_factory=dict)
    """All numbers behind it, for the JSON."""
    held_out_interval: Interval | None = None
    """95 %, Wilson's."""
    scores: Scores | None = None
    """On test, in full; None where ``accuracy`` is."""


@dataclass(frozen=True)
class RowResult:
    """One row of the comparison."""

    name: str
    kinds: tuple[KindResult, ...]

    @property
    def best(self) -> KindResult:
        """The kind of feature that counts: the highest test accuracy among those tested."""
        tested = [result for result in self.kinds if result.accuracy is not None]
        return max(tested, key=lambda result: result.accuracy or 0.0)

    @property
    def accuracy(self) -> float:
        """The row's number, in [0, 1]."""
        return self.best.accuracy or 0.0


@dataclass(frozen=True)
class Evaluation:
    """A protocol's name and settings, its rows, and what must be said beside them."""

    protocol: str
    """`knn` or `linear`; begins the result's file name."""
    settings: dict[str, Any]
    rows: tuple[RowResult, ...]
    majority: Scores
    """On test, of always answering train's most frequent class."""
    notes: tuple[str, ...]
    overlap: Overlap | None
    """None where it was not looked for."""
