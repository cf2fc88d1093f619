"""Buffers that pass pixels from data workers to the rank without copies and without new memory.

torch's own way makes a shared file for every tensor: on a small machine, allocating its pages and
passing its descriptor took a tenth of the loading time. Here the rank reserves memory before it
forks its workers; a worker writes a micro-batch's pixels into its next buffer and sends their
place. The memory is anonymous, so the size of /dev/shm, 64 MB in many containers, does not limit
it.

A micro-batch's pixels are overwritten two micro-batches later.
"""

import itertools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ssl_vit.data.batches import BadSample, Loaded
from ssl_vit.data.config import BUFFERS_IN_USE
from ssl_vit.errors import UserError

_buffers: "WeakValueDictionary[int, SharedBuffers]" = WeakValueDictionary()
_numbers: Iterator[int] = itertools.count()


class Place(NamedTuple):
    """The place of a tensor in the buffers, in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class SharedBuffers:
    """Memory for the pixels of micro-batches.

    Args:
        buffer_bytes: Bytes of the largest micro-batch.
        workers: Processes that will be forked; 0: every micro-batch has its own memory.
        prefetch: Micro-batches that each of them prepares ahead.
    """

    def __init__(self, buffer_bytes: int, workers: int, prefetch: int) -> None:
        self.buffer_bytes, self.per_worker = buffer_bytes, prefetch + BUFFERS_IN_USE
        self._turn = 0
        size = max(1, buffer_bytes * workers * self.per_worker)
        self._flat = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        self._number = next(_numbers)
        _buffers[self._number] = self

    def take(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 to be filled: the next buffer of this worker."""
        info = get_worker_info()
        if info is None:
            return torch.empty(num_bytes, dtype=torch.uint8)
        assert num_bytes <= self.buffer_bytes
        buffer = info.id * self.per_worker + self._turn % self.per_worker
        self._turn += 1
        return self._flat[buffer * self.buffer_bytes : buffer * self.buffer_bytes + num_bytes]

    def send(self, loaded: Loaded) -> "Sent":
        """The message for the queue: places of pixels, and arrays of everything else."""
        if loaded.batch is None:
            return Sent(self, None, (), loaded.bad, loaded.failure)
        fields = tuple(self._describe(tensor) for tensor in loaded.batch)
        return Sent(self, type(loaded.batch), fields, loaded.bad, loaded.failure)

    def find(self, field: Place | np.ndarray) -> Tensor:
        """The tensor of a field."""
        if isinstance(field, Place):
            return self._flat.as_strided(field.shape, field.strides, field.offset)
        return torch.from_numpy(field)

    def _describe(self, tensor: Tensor) -> Place | np.ndarray:
        if tensor.untyped_storage().data_ptr() == self._flat.untyped_storage().data_ptr():
            return Place(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
        return tensor.numpy()

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        # Only a number passes through the queue: both ends have the same buffers.
        return (_buffers_of, (self._number,))


def _buffers_of(number: int) -> SharedBuffers:
    return _buffers[number]


@dataclass(frozen=True)
class Sent:
    """A micro-batch in the queue."""

    buffers: SharedBuffers
    kind: type[Any] | None
    """Class of the batch; None if loading failed."""
    fields: tuple[Place | np.ndarray, ...]
    bad: tuple[BadSample, ...]
    failure: UserError | None

    def receive(self) -> Loaded:
        """The micro-batch."""
        if self.kind is None:
            return Loaded(None, self.bad, self.failure)
        tensors = [self.buffers.find(field) for field in self.fields]
        return Loaded(self.kind(*tensors), self.bad, self.failure)

    def pin_memory(self, device: Any = None) -> Loaded:
        """The micro-batch in pinned memory; called by torch's pinning thread."""
        loaded = self.receive()
        if loaded.batch is None:
            return loaded
        pinned = [tensor.pin_memory() for tensor in loaded.batch]
        return loaded._replace(batch=type(loaded.batch)(*pinned))
