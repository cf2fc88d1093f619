"""The contract between loading and training: where micro-batches come from, and what comes."""

from typing import Any, NamedTuple, Protocol

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.errors import UserError


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
