"""The only file that imports deepspeed: ZeRO-sharded updates behind one verb, `train_step`.

Surprises it hides (DeepSpeed 0.19): `backward` exactly once a micro-batch, or ZeRO-1/2 sum wrongly
in silence; the shared-memory operator would be compiled for 40 seconds at start; ZeRO-0 in float32
reports no gradient norm.
Set the environment variable DS_ACCELERATOR before importing this file: deepspeed reads it at
import.
"""

import gc
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any, Literal, TypeVar

import deepspeed
import deepspeed.comm
import deepspeed.ops
import torch
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.order import hash_words
from ssl_vit.distributed import Processes, complete_environment
from ssl_vit.objectives.objective import Objective, Observed
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.consensus import gather
from ssl_vit.training.deepspeed_config import deepspeed_config
from ssl_vit.training.gloo import gather_by_broadcasts
from ssl_vit.training.loss_scale import LossScale
from ssl_vit.training.measures import DTYPES, NormMeter, PhaseClock, peak_memory
from ssl_vit.training.optimizations import apply_optimizations
from ssl_vit.training.optimizer import build_optimizer, set_schedules
from ssl_vit.training.plan import RunPlan, learning_rate_at, weight_decay_at
from ssl_vit.training.reduce_metrics import Measured, exchange, mean_of
from ssl_vit.training.samples import digest_of, find_suspects
from ssl_vit.training.state_file import StateReader, copy_to_host
from ssl_vit.training.state_shards import (
    StateShard,
    StateShards,
    applied_updates,
    clear_padding,
    find_state_shards,
    set_applied_updates,
)
from ssl_vit.training.update import GroupNorms, LoadedBatch, Seconds, StepResult

# First word of the device's randomness (drop path), distinct from the words in data/order.py
# and samples.py.
_DEVICE_RANDOMNESS = 101

T = TypeVar("T")


def start_process_group(device: Literal["cpu", "cuda"], processes: Processes) -> None:
    """Join the other processes, quietly and without compiling anything."""
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
    """Give back what an engine held that nothing of ours refers to any more."""
    # ZeRO-3 keeps its newest module in a list, and its engine in the cache of a method.
    parameter_offload.FWD_MODULE_STACK.clear()
    for found in gc.get_objects():  # proxies of what is gone among them: no isinstance
        if type(found) is _lru_cache_wrapper and "deepspeed.runtime" in str(found.__module__):
            found.cache_clear()
    gc.collect()  # modules and their hooks refer to each other
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Engine:
    """One rank's half of a ZeRO-sharded training run.

    Args:
        objective: Built identically on every rank, on the CPU; moved to the device here.
        optimizer: What the updates are.
        engine: How they are computed.
        plan: What follows from both.
        processes: This rank's place.
        seed: Of the run.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: OptimizerConfig,
        engine: EngineConfig,
        plan: RunPlan,
        processes: Processes,
        seed: int,
    ) -> None:
        self.optimizer_config, self.plan, self.seed = optimizer, plan, seed
        self.processes, self.zero_stage = processes, engine.zero_stage
        self.groups = objective.parameter_groups()
        apply_optimizations(objective, engine, plan.device)
        base = build_optimizer(self.groups, optimizer, engine.fused_optimizer)
        # Any: deepspeed's own annotations are too loose to check against.
        parts: tuple[Any, ...] = deepspeed.initialize(
            model=objective,
            optimizer=base,
            config=deepspeed_config(engine, optimizer, plan),
            dist_init_required=False,
        )
        self.engine, self.optimizer = parts[0], parts[1]
        self.device = torch.device(self.engine.device)
        if self.zero_stage == 3:
            clear_padding(self.engine.module, self.optimizer, processes)
        self.clock, self.norms = PhaseClock(self.device), NormMeter(base)
        self.last_batch: Any = None
        """This rank's latest micro-batch, on the device; for panels."""
        self.observed: list[Observed] = []
        """Of the latest update's micro-batches on this rank; for monitors."""
        self.loss_scale = LossScale(plan.precision == "float16")
        if self.loss_scale.enabled:  # ours, and only one
            owner, name = (
                (self.engine, "torch_autocast_z0_gradscaler")
                if self.zero_stage == 0
                else (self.optimizer, "torch_autocast_gradscaler")
            )
            assert hasattr(owner, name), f"DeepSpeed has no {name} any more"
            setattr(owner, name, None)

    def train_step(
        self, batches: Iterator[LoadedBatch], step: int, measure_norms: bool = True
    ) -> StepResult:
        """One optimizer update over the next ``plan.accumulation`` micro-batches, and the
        objective's own after it, if it was applied.

        Args:
            batches: Micro-batches of this rank, on the CPU, each with its bad samples.
            step: Which update this is, from 0.
            measure_norms: Whether to fill in ``norms``.
        """
        self.norms.enabled = measure_norms
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, self.optimizer_config, self.plan)
        weight_decay = weight_decay_at(step, self.optimizer_config, self.plan)
        set_schedules(self.optimizer.param_groups, self.groups, step, learning_rate, weight_decay)
        torch.manual_seed(
            int(hash_words(self.seed, _DEVICE_RANDOMNESS, step, self.processes.rank)) >> 1
        )
        loss_scale = self.loss_scale.factor
        if loss_scale != 1 and self.zero_stage > 0:
            self.optimizer.override_loss_scale(loss_scale)
        seen = _Seen()
        for _ in range(self.plan.accumulation):
            self._micro_step(batches, step, loss_scale, seen)
        norm = float(seen.grad_norm if self.zero_stage == 0 else self.engine.get_global_grad_norm())
        applied = math.isfinite(norm)
        if applied:
            with self.clock.phase("after_step"):
                self.engine.module.after_step(step)
        self.observed = seen.observed
        found = self._exchange(seen)
        loss = found.means.pop("loss")
        # A loss that is not finite says nothing of the scale.
        overflowed = math.isfinite(loss) and self.loss_scale.update(applied)
        # Rare, so the slow way will do.
        bad = gather(seen.bad, self.processes) if found.num_bad else []
        return StepResult(
            loss=loss,
            metrics=found.means,
            grad_norm=norm,
            norms=self._norms(found.squares, norm) if applied and measure_norms else {},
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            loss_scale=loss_scale,
            applied=applied,
            overflowed=overflowed,
            suspects=() if applied or overflowed else self._suspects(seen),
            seconds=found.seconds,
            step_seconds=time.perf_counter() - began,
            peak_memory_bytes=found.peak_memory_bytes,
            samples=f"{found.digest:016x}",
            bad=tuple(sorted(sample for each in bad for sample in each)),
        )

    def _micro_step(
        self, batches: Iterator[LoadedBatch], step: int, loss_scale: float, seen: "_Seen"
    ) -> None:
        """One micro-batch; the last of an update applies it."""
        with self.clock.phase("data", on_host=True):
            loaded = next(batches)
        with self.clock.phase("forward_backward"):
            self.last_batch = to_device(loaded.batch, self.device)
            output = self.engine(self.last_batch, step)
            # The ZeRO optimizers multiply with the scale by themselves.
            scaled = output.loss * loss_scale if self.zero_stage == 0 else output.loss
            self.engine.backward(scaled)
        seen.bad += loaded.bad
        seen.numbers.append(loaded.batch.numbers)
        seen.outputs.append({"loss": output.loss.detach(), **output.metrics})
        seen.observed.append(output.observed)
        with self.clock.phase("optimizer"):
            if self.zero_stage == 0 and self.engine.is_gradient_accumulation_boundary():
                seen.grad_norm = self._settle_stage_0(loss_scale)
            self.engine.step()

    def copy_state(self) -> tuple[dict[str, Tensor], int]:
        """This rank's part of the state, copied to host memory, and the updates it has seen
        applied; every rank calls it.
        """
        state_shards = self._state_shards().to_save(self.processes)
        return copy_to_host(state_shards), applied_updates(self.optimizer)

    def load_state(self, files: Sequence[Path], num_applied: int) -> None:
        """Take over a state, whoever saved it: at any ZeRO stage, on any number of ranks.

        Args:
            files: Of all ranks that saved it.
            num_applied: As :meth:`copy_state` gave it.

        Raises:
            KeyError: They are of another model.
        """
        StateReader(files).read_into(self._state_shards().to_load())
        set_applied_updates(self.optimizer, num_applied)
        if self.zero_stage == 3 and (kept := self.optimizer.persistent_parameters):
            # Small parameters are whole on every rank; these copies are old now.
            kept[0].partition(kept)
            kept[0].all_gather(kept)

    def gathered(self) -> AbstractContextManager[Any]:
        """The whole parameters on every rank, to be read; every rank enters it."""
        if self.zero_stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of training, for forward passes outside of it (panels)."""
        if self.plan.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.plan.precision])

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.processes.world_size > 1:
            deepspeed.comm.barrier()

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank says yes; the same answers on every rank."""
        if self.processes.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        deepspeed.comm.all_reduce(votes, op=deepspeed.comm.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def release(self) -> None:
        """Undo what DeepSpeed set up for this engine; the process group stays for another one."""
        self.barrier()
        self.engine.destroy()

    def close(self) -> None:
        """Leave the process group, so that the interpreter ends without warnings."""
        self.barrier()  # gloo's threads abort an interpreter that ends under them
        self.engine.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _suspects(self, seen: "_Seen") -> tuple[int, ...]:
        losses = [output["loss"] for output in seen.outputs]
        return find_suspects(seen.numbers, losses, self.processes)

    def _state_shards(self) -> StateShards:
        module = self.engine.module
        state_shards = find_state_shards(module, self.optimizer, self.zero_stage, self.processes)
        state_shards.shared.append(StateShard("loss_scale/state", 0, self.loss_scale.state))
        return state_shards

    def _settle_stage_0(self, loss_scale: float) -> Tensor:
        """The whole gradient's norm; and what the other stages do by themselves: dividing by the
        loss scale, dropping a gradient that is not finite, clipping.
        """
        trained = [p for p in self.engine.module.parameters() if p.grad is not None]
        if loss_scale != 1:
            torch._foreach_div_([p.grad for p in trained], loss_scale)
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        if not torch.isfinite(norm):
            # AdamW passes over what has no gradient.
            self.engine.module.zero_grad(set_to_none=True)
        elif self.optimizer_config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.optimizer_config.clip_norm, norm)
        return norm

    def _exchange(self, seen: "_Seen") -> Measured:
        took = self.clock.take()
        mine = Measured(
            means=mean_of(seen.outputs),
            squares=self.norms.take(),
            seconds=Seconds(*(took.get(name, 0.0) for name in Seconds._fields)),
            peak_memory_bytes=peak_memory(self.device),
            digest=int(digest_of(seen.numbers)),
            num_bad=len(seen.bad),
        )
        return exchange(mine, self.processes, self.device, is_sharded=self.zero_stage > 0)

    def _norms(self, squares: Tensor, grad_norm: float) -> dict[str, GroupNorms]:
        norms = squares.sqrt()
        # The optimizer saw gradients that were clipped, all by the same factor.
        clipped = float(squares[:, 0].sum().sqrt())
        norms[:, 0] *= grad_norm / clipped if clipped else 1.0
        rows = zip(self.norms.names, norms.tolist(), strict=True)
        return {name: GroupNorms(*row) for name, row in rows}


@dataclass
class _Seen:
    """What the micro-batches of an update were, on this rank."""

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    grad_norm: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    """At stage 0."""


def to_device(batch: T, device: torch.device) -> T:
    """A NamedTuple of tensors on the device; copies overlap with computation where memory is
    pinned.
    """
    if device.type == "cpu":
        return batch
    assert isinstance(batch, tuple)
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
