"""Micro-batches of one rank, in the order of `order.py`, from any step on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ssl_vit.data.batches import Batches, Loaded
from ssl_vit.data.dataset import BatchMaker
from ssl_vit.data.order import Order, SampleRef
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.data.shared_buffers import Sent, SharedBuffers
from ssl_vit.errors import UserError


class UpdateSampler(Sampler[list[SampleRef]]):
    """Yields the samples of every micro-batch of the steps ``start_step`` … ``total_steps`` − 1."""

    def __init__(
        self,
        order: Order,
        lanes: range,
        micro_batch_size: int,
        start_step: int,
        total_steps: int,
    ) -> None:
        self.order, self.lanes, self.micro_batch_size = order, lanes, micro_batch_size
        self.start_step, self.total_steps = start_step, total_steps

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in range(self.start_step, self.total_steps):
            refs = self.order.update(step, self.lanes)
            for first in range(0, len(refs), self.micro_batch_size):
                yield refs[first : first + self.micro_batch_size]


@dataclass(frozen=True)
class LoaderSettings:
    """Settings that change the speed of loading and never the micro-batches."""

    workers: int
    """Number of processes; 0 loads in this one."""
    prefetch: int
    """Micro-batches that each worker prepares ahead."""
    pin_memory: bool
    """Whether copies to CUDA may overlap with computation."""
    worker_init: Callable[[int], None] | None = None
    """Called first in every worker."""


class LoadedBatches(Batches):
    """Micro-batches from data workers, with a prefetcher of their shards.

    Args:
        loader: From :func:`build_loader`.
        prefetcher: Kept informed of the run's position.
        position_of: Number of the micro-batch, from 0 → position for the prefetcher.
    """

    def __init__(
        self,
        loader: DataLoader[Sent],
        prefetcher: ShardPrefetcher,
        position_of: Callable[[int], int],
    ) -> None:
        self.prefetcher, self.position_of = prefetcher, position_of
        self._iterator = iter(loader)
        self._count = 0

    def __iter__(self) -> "LoadedBatches":
        return self

    def __next__(self) -> Loaded:
        self.prefetcher.advance(self.position_of(self._count))
        try:
            arrived: Sent | Loaded = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a data worker was killed: {str(error).splitlines()[0]}",
                "usually out of memory: lower engine.workers or engine.prefetch, and run the same "
                "command again",
            ) from None
        # With a GPU the pinning thread has received it already.
        loaded = arrived.receive() if isinstance(arrived, Sent) else arrived
        if loaded.failure is not None:
            raise loaded.failure
        self._count += 1
        return loaded

    def finish(self) -> None:
        self.prefetcher.finish(self.position_of(self._count))

    def close(self) -> None:
        # Now, not with the last reference: an error's traceback keeps the iterator alive until the
        # interpreter ends, which would then wait for workers that nobody has stopped.
        if isinstance(self._iterator, _MultiProcessingDataLoaderIter):
            self._iterator._shutdown_workers()
        self.prefetcher.close()


def build_loader(
    maker: BatchMaker,
    batches: Sampler[Any] | list[Any],
    batch_size: int,
    settings: LoaderSettings,
) -> "DataLoader[Sent]":
    """A DataLoader whose micro-batches come in the sampler's order, whatever the number of workers.

    Args:
        maker: Makes a micro-batch from an item of ``batches``.
        batches: The samples of each micro-batch, in order.
        batch_size: Number of images in the largest item.
    """
    buffers = SharedBuffers(maker.num_bytes(batch_size), settings.workers, settings.prefetch)
    return DataLoader(
        _InSharedBuffers(maker, buffers),
        batch_size=None,
        sampler=batches,
        num_workers=settings.workers,
        prefetch_factor=settings.prefetch if settings.workers else None,
        pin_memory=settings.pin_memory,
        worker_init_fn=settings.worker_init if settings.workers else None,
        # The buffers are memory that only a fork inherits.
        multiprocessing_context="fork" if settings.workers else None,
        collate_fn=as_it_is,  # type: ignore[arg-type] - with batch_size=None it gets no list
    )


class _InSharedBuffers(Dataset["Sent"]):
    """The data set of torch's loader; its items are micro-batches."""

    def __init__(self, maker: BatchMaker, buffers: SharedBuffers) -> None:
        self.maker, self.buffers = maker, buffers

    def __getitem__(self, items: Sequence[Any]) -> Sent:
        memory = self.buffers.take(self.maker.num_bytes(len(items)))
        return self.buffers.send(self.maker.make(items, memory))


def as_it_is(sent: Sent) -> Sent:
    """Return a micro-batch unchanged: nothing is left to collate."""
    return sent
