"""Each rank's part of the training state, in coordinates that sharding cannot change.

DeepSpeed cuts parameters and moments in another way at every ZeRO stage and number of processes.
Here every cut is named by what it is a part of: a kind, the parameter's name, and where it begins
in the flattened whole. A checkpoint of such shards is read at any stage by any number of processes,
frozen parameters (an EMA teacher) and buffers included; DeepSpeed's own universal format leaves
those out in silence.
"""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ssl_vit.distributed import Processes

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
