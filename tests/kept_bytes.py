"""What autograd keeps between a forward and a backward pass, for tests and benchmarks."""

from collections.abc import Callable

import torch
from torch import nn


def kept_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Of all tensors that autograd keeps for the backward pass, the module's parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())
