"""Micro-batches of one rank, in the order that `order.py` gives, from any step on."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ssl_vit.data.dataset import TrainingDataset
from ssl_vit.data.order import SampleOrder, SampleRef
from ssl_vit.errors import UserError


class UpdateSampler(Sampler[list[SampleRef]]):
    """Yields the samples of every micro-batch of updates ``start_step`` … ``total_steps`` − 1."""

    def __init__(
        self,
        order: SampleOrder,
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


def iter_batches(loader: DataLoader[Any], shards: Path | str) -> Generator[Any, None, None]:
    """The loader's batches; a sample that cannot be decoded ends them with words for a person.

    Args:
        loader: Over a dataset of this package.
        shards: Folder of its shard set.

    Raises:
        UserError: Names the sample's key and shard.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except ValueError as error:
        # From a worker the message comes after the worker's traceback; the last line is its own.
        problem = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        raise UserError(
            problem, f"ssl-vit shards check {shards}  lists every such image; remove and pack again"
        ) from error
    finally:
        # Now, not when the last reference goes: an error's traceback keeps the iterator alive until
        # the interpreter ends, which then waits for workers that nobody told to leave.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


def build_loader(
    dataset: TrainingDataset,
    sampler: UpdateSampler,
    workers: int,
    prefetch: int,
    pin_memory: bool,
    worker_init: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """A DataLoader whose micro-batches come in the sampler's order, whatever the number of workers.

    Args:
        dataset: Reads, decodes and augments.
        sampler: Says which samples, in which order.
        workers: Processes; 0 loads in this one.
        prefetch: Micro-batches each worker prepares ahead.
        pin_memory: For copies to CUDA that overlap with computation.
        worker_init: Called first in every worker.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=worker_init if workers else None,
    )
