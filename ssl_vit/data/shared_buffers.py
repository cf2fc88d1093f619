"""Pixels cross from data workers to the rank without being copied, and without new memory.

The usual way makes a shared file for every tensor: on a small machine, giving out its fresh pages
and passing its descriptor cost a tenth of the loading. Here the rank sets memory aside before it
forks its workers; a worker writes a micro-batch's pixels into its next buffer and sends where they
are. It is anonymous memory, so the size of /dev/shm, 64 MB in many a container, is no limit.

A micro-batch's pixels are overwritten after two more were drawn.
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

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.config import BUFFERS_IN_USE
from ssl_vit.errors import UserError

_buffers: "WeakValueDictionary[int, SharedBuffers]" = WeakValueDictionary()
_numbers: Iterator[int] = itertools.count()


class Loaded(NamedTuple):
    """What a dataset makes of a micro-batch."""

    batch: Any
    """A NamedTuple of tensors; None where loading failed."""
    bad: tuple[BadSample, ...] = ()
    """Samples that were replaced."""
    failure: UserError | None = None
    """What ended the loading; raised in a worker, it would arrive as text."""


class Place(NamedTuple):
    """Where in the buffers a tensor lies, in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class SharedBuffers:
    """Memory for the pixels of micro-batches.

    Args:
        buffer_bytes: Of the largest micro-batch.
        workers: Processes that will be forked; 0: every micro-batch has memory of its own.
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
        """(num_bytes,) uint8 to be filled: in a worker its next buffer."""
        info = get_worker_info()
        if info is None:
            return torch.empty(num_bytes, dtype=torch.uint8)
        assert num_bytes <= self.buffer_bytes
        buffer = info.id * self.per_worker + self._turn % self.per_worker
        self._turn += 1
        return self._flat[buffer * self.buffer_bytes : buffer * self.buffer_bytes + num_bytes]

    def send(self, loaded: Loaded) -> "Sent":
        """What the worker puts into the queue: places of pixels, and arrays of all else."""
        if loaded.batch is None:
            return Sent(self, None, (), loaded.bad, loaded.failure)
        fields = tuple(self._describe(tensor) for tensor in loaded.batch)
        return Sent(self, type(loaded.batch), fields, loaded.bad, loaded.failure)

    def find(self, field: Place | np.ndarray) -> Tensor:
        """The tensor that a field stands for."""
        if isinstance(field, Place):
            return self._flat.as_strided(field.shape, field.strides, field.offset)
        return torch.from_numpy(field)

    def _describe(self, tensor: Tensor) -> Place | np.ndarray:
        if tensor.untyped_storage().data_ptr() == self._flat.untyped_storage().data_ptr():
            return Place(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
        return tensor.numpy()

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        # Through the queue goes a number: both ends have the same buffers.
        return (_buffers_of, (self._number,))


def _buffers_of(number: int) -> SharedBuffers:
    return _buffers[number]


@dataclass(frozen=True)
class Sent:
    """A micro-batch on its way."""

    buffers: SharedBuffers
    kind: type[Any] | None
    """Of the batch."""
    fields: tuple[Place | np.ndarray, ...]
    bad: tuple[BadSample, ...]
    failure: UserError | None

    def receive(self) -> Loaded:
        """What the dataset made."""
        if self.kind is None:
            return Loaded(None, self.bad, self.failure)
        tensors = [self.buffers.find(field) for field in self.fields]
        return Loaded(self.kind(*tensors), self.bad, self.failure)

    def pin_memory(self, device: Any = None) -> Loaded:
        """What torch's pinning thread calls: the same, copied to where a GPU fetches by itself."""
        loaded = self.receive()
        if loaded.batch is None:
            return loaded
        pinned = [tensor.pin_memory() for tensor in loaded.batch]
        return loaded._replace(batch=type(loaded.batch)(*pinned))
