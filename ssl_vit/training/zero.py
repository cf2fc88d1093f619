"""The only file that knows DeepSpeed: an objective and its optimizer under ZeRO, in a few methods.

Surprises it hides (DeepSpeed 0.19): `backward` has to be called exactly once per micro-batch, or
ZeRO-1/2 silently compute wrong sums; the shared-memory operator would be compiled for 40 seconds at
start; ZeRO-0 in float32 reports no gradient norm; its throughput timer waits for a GPU twice per
micro-batch. `tests/training/test_zero.py` lists every
DeepSpeed name that is used here, including private ones.
Set the environment variable DS_ACCELERATOR before importing this file: deepspeed reads it at
import.
"""

import gc
import logging
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import _lru_cache_wrapper
from typing import Any, Literal, NamedTuple

import deepspeed
import deepspeed.comm
import deepspeed.ops
import torch
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor

from ssl_vit.distributed import Processes, complete_environment
from ssl_vit.objectives.objective import Objective, StepOutput
from ssl_vit.training.gloo import gather_by_broadcasts

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Torch's names of AdamW's moments."""
_TINY = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def start_process_group(device: Literal["cpu", "cuda"], processes: Processes) -> None:
    """Join the other processes, without log messages and without compiling anything."""
    complete_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if device == "cuda":
        torch.cuda.set_device(processes.local_rank)
    # Only inference uses this operator, yet the first start would spend 40 s compiling it.
    compatible: dict[str, bool] = getattr(deepspeed.ops, "__compatible_ops__", {})
    compatible["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device == "cuda" else "gloo", verbose=False, auto_mpi_discovery=False
    )
    if device == "cpu":
        backend: Any = deepspeed.comm.comm.cdb
        backend.all_gather_function = gather_by_broadcasts


def free_memory(device: Literal["cpu", "cuda"]) -> None:
    """Free the memory of an engine that is no longer referenced by our code."""
    # ZeRO-3 keeps its newest module in a list, and its engine in the cache of a method.
    parameter_offload.FWD_MODULE_STACK.clear()
    for found in gc.get_objects():  # no isinstance: some are proxies of deleted objects
        if type(found) is _lru_cache_wrapper and "deepspeed.runtime" in str(found.__module__):
            found.cache_clear()
    if "torch._dynamo" in sys.modules:  # compiled code refers to the modules
        torch._dynamo.reset()
    gc.collect()  # modules and their hooks refer to each other
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def local_parts(parameter: Tensor) -> list[Tensor]:
    """This rank's values of a parameter: the whole; under ZeRO-3 its share, followed by the whole
    if that is kept too because the parameter is small.
    """
    sharded: Any = parameter
    if not hasattr(sharded, "ds_tensor"):
        return [parameter.data]
    share = sharded.ds_tensor.data
    is_whole = parameter.data.numel() == sharded.ds_numel
    return [share, parameter.data] if is_whole else [share]


class KeptState(NamedTuple):
    """This rank's part of a parameter's training state; all tensors are flat views of it."""

    start: int
    """Index of the first element in the flattened parameter."""
    weight: Tensor | None
    """Its values as they are saved; None if all of them are on other ranks."""
    moments: dict[str, Tensor]
    """Moments of the same elements; none for a frozen parameter."""
    copies: tuple[tuple[int, Tensor], ...]
    """Second copies of the values, if the weights used for computing are not those that are
    updated: (index of the first element, elements).
    """
    is_whole: bool
    """Whether every rank has the whole parameter."""


class ZeroModel:
    """One rank's part of an objective and its optimizer, sharded by ZeRO.

    Args:
        objective: Built identically on every rank, on the CPU; moved to the device here.
        optimizer: A torch optimizer over the objective's parameters.
        settings: DeepSpeed's config.
        stage: ZeRO stage.
        processes: This rank among all.
        clip_norm: Largest norm of the gradients; 0 turns clipping off.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        stage: int,
        processes: Processes,
        clip_norm: float,
    ) -> None:
        # Any: deepspeed's annotations are too loose to check against.
        parts: tuple[Any, ...] = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.deepspeed, self.optimizer = parts[0], parts[1]
        self.stage, self.processes, self.clip_norm = stage, processes, clip_norm
        self._trained = [each for each in objective.parameters() if each.requires_grad]
        self.loss_scale = 1.0
        self._settles = stage == 0 or not settings["zero_optimization"].get(
            "compute_grad_norm", True
        )
        self._norm: Tensor = torch.tensor(0.0)
        if stage == 0 and processes.world_size == 1:  # or it would copy every gradient twice
            self.deepspeed.enable_backward_allreduce = False
        if stage in (1, 2):
            # After a step it makes every parameter a view of the flat weights, which it is.
            self.optimizer._update_model_bit16_weights = lambda _: None
        if stage == 3:
            self._clear_padding()

    @property
    def module(self) -> Objective:
        """The objective; under ZeRO-3 its parameters are empty outside of a forward pass."""
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch.device(self.deepspeed.device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, in its order."""
        return self.optimizer.param_groups

    def without_loss_scaling(self) -> None:
        """Remove DeepSpeed's own scaling of a float16 loss."""
        owner, name = (
            (self.deepspeed, "torch_autocast_z0_gradscaler")
            if self.stage == 0
            else (self.optimizer, "torch_autocast_gradscaler")
        )
        assert hasattr(owner, name), f"DeepSpeed no longer has {name}"
        setattr(owner, name, None)

    def scale_loss(self, factor: float) -> None:
        """Multiply the losses of the next step by this factor; its gradients are divided by it."""
        self.loss_scale = factor
        if factor != 1 and self.stage > 0:
            self.optimizer.override_loss_scale(factor)

    def forward(self, batch: Any, step: int) -> StepOutput:
        """The objective's loss of a micro-batch."""
        return self.deepspeed(batch, step)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; call it exactly once per micro-batch."""
        # The ZeRO optimizers multiply by the scale themselves.
        self.deepspeed.backward(loss * self.loss_scale if self.stage == 0 else loss)

    def step(self) -> None:
        """End a micro-batch; the last one of a step updates the weights unless a gradient is not
        finite.
        """
        if self._settles and self.deepspeed.is_gradient_accumulation_boundary():
            self._norm = self._settle()
        self.deepspeed.step()

    def gradient_norm(self) -> float:
        """L2 norm of the latest step's whole gradient, before clipping."""
        return float(self._norm if self._settles else self.deepspeed.get_global_grad_norm())

    def gathered(self) -> AbstractContextManager[Any]:
        """A context with the whole parameters on every rank, for reading; every rank enters it."""
        if self.stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(self.module.parameters()))

    def destroy(self) -> None:
        """Undo DeepSpeed's setup; the process group stays."""
        self.deepspeed.destroy()

    def make_moments(self) -> None:
        """Create AdamW's state as it is before the first step, if there is none yet."""
        base = self._base_optimizer
        for parameter in self._optimized_tensors():
            if not base.state[parameter]:
                base.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    **{kind: torch.zeros_like(parameter.data) for kind in MOMENTS},
                }
        if self.stage in (1, 2):
            # Once more: DeepSpeed links all groups after the update of the first one, before the
            # others' moments exist.
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def applied_updates(self) -> int:
        """Number of steps that the optimizer has applied, for its bias correction."""
        state = self._base_optimizer.state
        return max((int(each["step"]) for each in state.values() if each), default=0)

    def set_applied_updates(self, count: int) -> None:
        """Set the number returned by :meth:`applied_updates`."""
        for each in self._base_optimizer.state.values():
            each["step"].fill_(count)

    def kept_state(self, parameter: Any) -> KeptState:
        """This rank's part of a parameter and its moments, created by :meth:`make_moments`."""
        if self.stage == 3:
            return self._stage_3_state(parameter)
        weight = parameter.data.view(-1)
        if not parameter.requires_grad:
            return KeptState(0, weight, {}, (), is_whole=True)
        if self.stage == 0:
            state = self._base_optimizer.state[parameter]
            moments = {kind: state[kind].view(-1) for kind in MOMENTS}
            return KeptState(0, weight, moments, (), is_whole=True)
        mapping, copies = parameter._hp_mapping, ((0, weight),)
        if mapping is None:
            return KeptState(0, None, {}, copies, is_whole=False)
        return KeptState(
            mapping.lp_fragment_address.start,
            mapping.hp_fragment.data,
            {kind: mapping.optim_fragment[kind] for kind in MOMENTS},
            copies,
            is_whole=False,
        )

    def refresh_copies(self) -> None:
        """Gather again the small parameters that every rank keeps whole under ZeRO-3."""
        if self.stage == 3 and (kept := self.optimizer.persistent_parameters):
            kept[0].partition(kept)
            kept[0].all_gather(kept)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer inside DeepSpeed's."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _optimized_tensors(self) -> Iterable[Tensor]:
        if self.stage == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        groups = self._base_optimizer.param_groups
        return [each for group in groups for each in group["params"]]

    def _settle(self) -> Tensor:
        """The norm of the whole gradient, and what the optimizer does with the gradients: divide
        by the loss scale, clip, and skip the step if one is not finite. At stages 1 and 2 it
        replaces DeepSpeed's, which waits for a GPU twice for every parameter group.
        """
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.stage and self.processes.world_size > 1:
            squares = norm.square()
            torch.distributed.all_reduce(squares)
            norm = squares.sqrt()
        norm = norm / self.loss_scale
        divisor = torch.ones_like(norm)
        if self.clip_norm:
            divisor = ((norm + _TINY) / self.clip_norm).clamp(min=1)
        if self.stage == 0:  # at the others the ZeRO optimizer divides by the loss scale
            divisor = divisor * self.loss_scale
        base: Any = self._base_optimizer
        is_scaled = bool(self.clip_norm) or (self.stage == 0 and self.loss_scale != 1)
        if base.defaults["fused"]:  # the kernel divides and skips: nobody waits for the norm
            base.grad_scale = divisor if is_scaled else None
            base.found_inf = (~torch.isfinite(norm)).float()
        elif not torch.isfinite(norm):
            # AdamW skips parameters without a gradient.
            self.module.zero_grad(set_to_none=True)
        elif is_scaled:
            torch._foreach_div_(gradients, divisor)
        return norm

    def _gradients(self) -> list[Tensor]:
        """This rank's gradients: all, or at stages 1 and 2 its share of their means."""
        if self.stage:
            return [each for part in self.optimizer.averaged_gradients.values() for each in part]
        return [grad for p in self._trained if (grad := p.grad) is not None]

    def _stage_3_state(self, parameter: Any) -> KeptState:
        start, count = self._share_of(parameter)
        if count == 0:
            return KeptState(start, None, {}, (), is_whole=False)
        weight = parameter.ds_tensor.data.view(-1)[:count]
        if not parameter.requires_grad:
            return KeptState(start, weight, {}, (), is_whole=False)
        copy = self._stage_3_partition(parameter, None)[:count]
        moments = {kind: self._stage_3_partition(parameter, kind)[:count] for kind in MOMENTS}
        return KeptState(start, weight, moments, ((start, copy),), is_whole=False)

    def _stage_3_partition(self, parameter: Any, kind: str | None) -> Tensor:
        """This rank's part of a moment, or of the float32 weight, including padding."""
        found, _ = self.optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=True, optim_state_key=kind
        )
        return found.data.view(-1)

    def _share_of(self, parameter: Any) -> tuple[int, int]:
        """(index of the first element, number of elements) of this rank's share under ZeRO-3."""
        size = parameter.ds_tensor.ds_numel
        start = self.processes.rank * size
        # The last partitions are padded.
        return start, max(0, min(size, parameter.ds_numel - start))

    def _clear_padding(self) -> None:
        """Zero the padding of ZeRO-3's last partitions: DeepSpeed leaves it uninitialized, and it
        would count in a norm although it is not part of any weight.
        """
        for parameter in self.module.parameters():
            _, count = self._share_of(parameter)
            kept: Any = parameter
            kept.ds_tensor.data.view(-1)[count:] = 0
            if parameter.requires_grad:
                self._stage_3_partition(parameter, None)[count:] = 0
