"""Sums, maxima and rows over all ranks. With one process nothing is called, not even where there is
a process group: a GPU would launch a kernel for it, and torch.compile end a graph.
"""

import torch
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over the default process group, in place; unchanged with one process."""
    if num_ranks() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise maximum over all ranks, in place; unchanged with one process."""
    if num_ranks() > 1:
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor


def rows_of_ranks(tensor: Tensor) -> Tensor:
    """(R, …) of each rank, all of the same shape → (R × ranks, …), in the order of the ranks."""
    if num_ranks() == 1:
        return tensor
    found = [torch.empty_like(tensor) for _ in range(num_ranks())]
    torch.distributed.all_gather(found, tensor.contiguous())
    return torch.cat(found)


def from_first_rank(tensor: Tensor) -> Tensor:
    """Overwrite a tensor with the first rank's, in place; unchanged with one process."""
    if num_ranks() > 1:
        torch.distributed.broadcast(tensor, src=0)
    return tensor


def num_ranks() -> int:
    """Number of ranks in the default process group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
