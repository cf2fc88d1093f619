"""Each rank's part of the training state, in coordinates that sharding cannot change.

DeepSpeed cuts parameters and moments in another way at every ZeRO stage and number of processes.
Here every cut is named by what it is a part of: a kind, the parameter's name, and where it begins
in the flattened whole. A checkpoint of such shards is read at any stage by any number of processes,
frozen parameters (an EMA teacher) and buffers included; DeepSpeed's own universal format leaves
those out in silence.

The attributes of DeepSpeed 0.19 used here: `_hp_mapping` of a parameter (stages 1 and 2) and
`ds_tensor` (stage 3).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_vit.distributed import Processes

WEIGHT, MOMENTS, BUFFER = "weight", ("exp_avg", "exp_avg_sq"), "buffer"


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


def find_state_shards(
    module: nn.Module, optimizer: Any, stage: int, processes: Processes
) -> StateShards:
    """This rank's part of the state; the optimizer's moments are made where there are none yet.

    Args:
        module: The objective inside the engine.
        optimizer: As DeepSpeed returned it.
        stage: ZeRO stage.
        processes: This rank's place.
    """
    make_moments(optimizer)
    shards = StateShards([], [], [])
    for name, parameter in module.named_parameters():
        if stage == 3:
            _add_stage_3(shards, name, parameter, optimizer, processes)
            continue
        whole = StateShard(f"{WEIGHT}/{name}", 0, parameter.data.view(-1))
        if stage == 0 or not parameter.requires_grad:
            shards.shared.append(whole)
        else:
            shards.own.extend(_stages_1_and_2(name, parameter))
            shards.working.append(whole)
        if stage == 0 and parameter.requires_grad:
            state = base_optimizer(optimizer).state[parameter]
            shards.shared.extend(
                StateShard(f"{kind}/{name}", 0, state[kind].view(-1)) for kind in MOMENTS
            )
    kept = module.state_dict(keep_vars=True)  # without the buffers that follow from the config
    shards.shared.extend(
        StateShard(f"{BUFFER}/{name}", 0, data.view(-1))
        for name, data in module.named_buffers()
        if name in kept
    )
    return shards


def make_moments(optimizer: Any) -> None:
    """AdamW's state as it is before the first update, where there is none yet."""
    base = base_optimizer(optimizer)
    for parameter in _optimized_tensors(optimizer):
        if not base.state[parameter]:
            base.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{kind: torch.zeros_like(parameter.data) for kind in MOMENTS},
            }
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # Once more: DeepSpeed links all groups after the first one's update, the others' moments
        # not being there yet.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def applied_updates(optimizer: Any) -> int:
    """Updates the optimizer has made, for its bias correction."""
    state = base_optimizer(optimizer).state
    return max((int(each["step"]) for each in state.values() if each), default=0)


def set_applied_updates(optimizer: Any, count: int) -> None:
    """Set what :func:`applied_updates` gives."""
    for each in base_optimizer(optimizer).state.values():
        each["step"].fill_(count)


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's."""
    return getattr(optimizer, "optimizer", optimizer)


def _optimized_tensors(optimizer: Any) -> Iterable[Tensor]:
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        return optimizer.fp32_partitioned_groups_flat
    return [each for group in base_optimizer(optimizer).param_groups for each in group["params"]]


def _stages_1_and_2(name: str, parameter: Any) -> Iterator[StateShard]:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it is another rank's
        return
    start = mapping.lp_fragment_address.start
    yield StateShard(f"{WEIGHT}/{name}", start, mapping.hp_fragment.data)
    for kind in MOMENTS:
        yield StateShard(f"{kind}/{name}", start, mapping.optim_fragment[kind])


def _add_stage_3(
    shards: StateShards, name: str, parameter: Any, optimizer: Any, processes: Processes
) -> None:
    start, count = _kept_of(parameter, processes)
    if count == 0:
        return
    weight = StateShard(f"{WEIGHT}/{name}", start, parameter.ds_tensor.data.view(-1)[:count])
    shards.own.append(weight)
    if not parameter.requires_grad:
        return

    def partition(kind: str | None) -> Tensor:
        return _stage_3_partition(parameter, optimizer, kind)[:count]

    shards.working.append(weight._replace(data=partition(None)))
    shards.own.extend(StateShard(f"{kind}/{name}", start, partition(kind)) for kind in MOMENTS)


def clear_padding(module: nn.Module, optimizer: Any, processes: Processes) -> None:
    """Zero what fills up ZeRO-3's last partitions: DeepSpeed leaves there what was in memory, which
    is no part of any weight but would count in a norm.
    """
    for parameter in module.parameters():
        _, count = _kept_of(parameter, processes)
        kept: Any = parameter
        kept.ds_tensor.data.view(-1)[count:] = 0
        if parameter.requires_grad:
            _stage_3_partition(parameter, optimizer, None)[count:] = 0


def _kept_of(parameter: Any, processes: Processes) -> tuple[int, int]:
    """(the first element that this rank keeps of a parameter under ZeRO-3, how many)."""
    size = parameter.ds_tensor.ds_numel
    start = processes.rank * size
    return start, max(0, min(size, parameter.ds_numel - start))  # the last partitions are padded


def _stage_3_partition(parameter: Any, optimizer: Any, kind: str | None) -> Tensor:
    """This rank's part of a moment, or of the float32 weight, padding included."""
    found, _ = optimizer._get_fp32_opt_state_partition(
        parameter, release_swap_buffers=True, optim_state_key=kind
    )
    return found.data.view(-1)
