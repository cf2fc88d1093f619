"""The contract between loading and training: where micro-batches come from, and what comes.

No torch here.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ssl_vit.errors import UserError


@dataclass(frozen=True, order=True)
class BadSample:
    """One place in the order of samples whose own image could not be used."""

    number: int
    """Sample number in the shard set."""
    epoch: int
    key: str
    shard: str
    """Path or URL of the shard."""
    problem: str
    replaced_by: int
    """Sample number that was used instead."""


class Loaded(NamedTuple):
    """A loaded micro-batch."""

    batch: Any
    """A NamedTuple of tensors; None if loading failed."""
    bad: tuple[BadSample, ...] = ()
    """Samples that were replaced."""
    failure: UserError | None = None
    """The error that ended the loading; if a worker raised it, it would arrive as text."""


class Batches(Protocol):
    """The training loop's source of micro-batches."""

    def __iter__(self) -> "Batches": ...

    def __next__(self) -> Loaded:
        """The next micro-batch; its pixels are overwritten two micro-batches later.

        Raises:
            UserError: It cannot be loaded; names sample or shard.
        """
        ...

    def finish(self) -> None:
        """Wait until all shards that were read are verified against their index.

        Raises:
            UserError: One does not match; names it.
        """
        ...

    def close(self) -> None:
        """End all processes."""
        ...
