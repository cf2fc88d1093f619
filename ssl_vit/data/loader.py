"""Micro-batches of one rank, in the order that `order.py` gives, from any step on."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler

from ssl_vit.data.dataset import TrainingDataset
from ssl_vit.data.order import SampleOrder, SampleRef


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
