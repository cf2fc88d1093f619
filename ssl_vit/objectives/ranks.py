"""Sums, maxima and rows over all ranks; without a process group, those of this process."""

import torch
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over the default process group, in place; unchanged without a process group."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise maximum over all ranks, in place; unchanged without a process group."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor


def rows_of_ranks(tensor: Tensor) -> Tensor:
    """(R, …) of each rank, all of the same shape → (R × ranks, …), in the order of the ranks."""
    if not torch.distributed.is_initialized():
        return tensor
    found = [torch.empty_like(tensor) for _ in range(num_ranks())]
    torch.distributed.all_gather(found, tensor.contiguous())
    return torch.cat(found)


def from_first_rank(tensor: Tensor) -> Tensor:
    """Overwrite a tensor with the first rank's, in place; unchanged without a process group."""
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(tensor, src=0)
    return tensor


def num_ranks() -> int:
    """Number of ranks in the default process group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
