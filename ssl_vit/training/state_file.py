"""Shards of the training state in safetensors files, one per rank, read back in any partition."""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_vit.files import share_like_folder, spelled_in_utf8
from ssl_vit.training.state_shards import StateShard


def copy_to_host(shards: Iterable[StateShard]) -> dict[str, Tensor]:
    """Copies in host memory, named `KEY@START`; training may go on at once."""
    return {
        f"{shard.key}@{shard.start}": shard.data.detach().to("cpu", copy=True).contiguous()
        for shard in shards
    }


def write_state(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write what :func:`copy_to_host` gave, down to the disk."""
    save_file(tensors, file)
    share_like_folder(file)
    with file.open("rb") as written:
        os.fsync(written.fileno())


class _Stored(NamedTuple):
    start: int
    end: int
    name: str
    file: Any


class StateReader:
    """The files of all ranks of one checkpoint.

    Args:
        files: Whoever wrote them, however many.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._stored: dict[str, list[_Stored]] = {}
        for path in files:
            with spelled_in_utf8(path) as place:
                file: Any = safe_open(place, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a dict
                key, _, start = name.rpartition("@")
                (length,) = file.get_slice(name).get_shape()
                stored = _Stored(int(start), int(start) + length, name, file)
                self._stored.setdefault(key, []).append(stored)

    def read_into(self, shards: Iterable[StateShard]) -> None:
        """Overwrite the shards with what was stored.

        Raises:
            KeyError: Some of a shard was not; names it.
        """
        with torch.no_grad():
            for shard in shards:
                found = sum(
                    self._read_part(shard, each) for each in self._stored.get(shard.key, [])
                )
                if found != shard.data.numel():
                    raise KeyError(
                        f"{shard.key} has {shard.data.numel() - found:,} elements that it lacks"
                    )

    def read(self, key: str) -> Tensor:
        """The whole of a tensor, flattened.

        Raises:
            KeyError: It was not stored, or not all of it.
        """
        parts = sorted(self._stored.get(key, []))
        if not parts:
            raise KeyError(key)
        if any(before.end != after.start for before, after in pairwise(parts)) or parts[0].start:
            raise KeyError(f"a part of {key}")
        return torch.cat([part.file.get_tensor(part.name) for part in parts])

    @staticmethod
    def _read_part(shard: StateShard, stored: _Stored) -> int:
        begin, end = max(shard.start, stored.start), min(shard.end, stored.end)
        if begin >= end:
            return 0
        values = stored.file.get_slice(stored.name)[begin - stored.start : end - stored.start]
        shard.data[begin - shard.start : end - shard.start].copy_(values)
        return end - begin
