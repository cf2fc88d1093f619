"""Each rank's part of the training state, in coordinates that do not depend on sharding.

DeepSpeed partitions parameters and moments differently at every ZeRO stage and number of processes.
Here every part is identified by a kind, the parameter's name, and its start in the flattened
parameter. A checkpoint of such shards can be read at any stage by any number of processes,
including frozen parameters (an EMA teacher) and buffers; DeepSpeed's own universal format silently
leaves those out.

Each rank writes its shards into a safetensors file; they are read back in any partition.
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

# Kinds besides the moments, which `zero.py` names.
WEIGHT, BUFFER = "weight", "buffer"


class StateShard(NamedTuple):
    """Consecutive elements of a flattened tensor."""

    key: str
    """`KIND/NAME`."""
    start: int
    """Index of the first element."""
    data: Tensor
    """(n,) view of the state itself."""

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.start + self.data.numel()


class StateShards(NamedTuple):
    """A rank's part of the state."""

    own: list[StateShard]
    """Shards that no other rank has."""
    shared: list[StateShard]
    """Whole tensors that every rank has."""
    working: list[StateShard]
    """Second copies, if the weights used for computing are not those that are updated."""

    def to_save(self, processes: Processes) -> list[StateShard]:
        """The shards that this rank writes; together the ranks write everything once."""
        return self.own + self.shared[processes.rank :: processes.world_size]

    def to_load(self) -> list[StateShard]:
        """The shards that this rank must read."""
        return self.own + self.shared + self.working


def find_state_shards(zero: "ZeroModel") -> StateShards:
    """This rank's part of the state; missing optimizer moments are created."""
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
    # Without buffers that follow from the config.
    saved = zero.module.state_dict(keep_vars=True)
    shards.shared.extend(
        StateShard(f"{BUFFER}/{name}", 0, data.view(-1))
        for name, data in zero.module.named_buffers()
        if name in saved
    )
    return shards


def copy_to_host(shards: Iterable[StateShard]) -> dict[str, Tensor]:
    """Copies in host memory, named `KEY@START`; training may continue at once."""
    return {
        f"{shard.key}@{shard.start}": shard.data.detach().to("cpu", copy=True).contiguous()
        for shard in shards
    }


def write_state(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write the result of :func:`copy_to_host`, synced to disk."""
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
        files: Files of all ranks that wrote it, any number of them.
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
        """Overwrite the shards with their stored values.

        Raises:
            KeyError: A part of a shard was not stored; names the shard.
        """
        with torch.no_grad():
            for shard in shards:
                found = sum(
                    self._read_part(shard, each) for each in self._stored.get(shard.key, [])
                )
                if found != shard.data.numel():
                    raise KeyError(
                        f"{shard.data.numel() - found:,} elements of {shard.key} are missing"
                    )

    def read(self, key: str) -> Tensor:
        """The whole tensor, flattened.

        Raises:
            KeyError: It was not stored, or only a part of it.
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
