"""Each rank's part of the training state, in coordinates that sharding cannot change.

DeepSpeed cuts parameters and moments in another way at every ZeRO stage and number of processes.
Here every cut is named by what it is a part of: a kind, the parameter's name, and where it begins
in the flattened whole. A checkpoint of such shards is read at any stage by any number of processes,
frozen parameters (an EMA teacher) and buffers included; DeepSpeed's own universal format leaves
those out in silence.

Each rank writes its own into a safetensors file; they are read back in any partition.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_vit.distributed import Processes
from ssl_vit.files import share_like_folder, spelled_in_utf8

if TYPE_CHECKING:
    from ssl_vit.training.zero import ZeroModel

# Kinds beside the moments, which `zero.py` names.
WEIGHT, BUFFER = "weight", "buffer"


class StateShard(NamedTuple):
    """Some neighboring elements of a flattened tensor."""

    key: str
    """`KIND/NAME`."""
    start: int
    """Of the first element."""
    data: Tensor
    """(n,) view of the state itself."""

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.start + self.data.numel()


class StateShards(NamedTuple):
    """All that a rank has of the state."""

    own: list[StateShard]
    """Of a sharded run: no other rank has them."""
    shared: list[StateShard]
    """Whole tensors that every rank has."""
    working: list[StateShard]
    """Second copies, where the weights that compute are not those that are updated."""

    def to_save(self, processes: Processes) -> list[StateShard]:
        """What this rank writes: together the ranks write everything once."""
        return self.own + self.shared[processes.rank :: processes.world_size]

    def to_load(self) -> list[StateShard]:
        """What this rank must read."""
        return self.own + self.shared + self.working


def find_state_shards(zero: "ZeroModel") -> StateShards:
    """This rank's part of the state; the optimizer's moments are made where there are none yet."""
    zero.make_moments()
    shards = StateShards([], [], [])
    for name, parameter in zero.module.named_parameters():
        kept = zero.kept_state(parameter)
        place = shards.shared if kept.is_whole else shards.own
        if kept.weight is not None:
            place.append(StateShard(f"{WEIGHT}/{name}", kept.start, kept.weight))
        place.extend(
            StateShard(f"{kind}/{name}", kept.start, data) for kind, data in kept.moments.items()
        )
        shards.working.extend(
            StateShard(f"{WEIGHT}/{name}", start, data) for start, data in kept.copies
        )
    # Without the buffers that follow from the config.
    saved = zero.module.state_dict(keep_vars=True)
    shards.shared.extend(
        StateShard(f"{BUFFER}/{name}", 0, data.view(-1))
        for name, data in zero.module.named_buffers()
        if name in saved
    )
    return shards


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
