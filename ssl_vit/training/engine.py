"""One optimizer step at a time, on every rank: `train_step`, over what `zero.py` shards."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssl_vit.data.batches import Loaded
from ssl_vit.data.order import hash_words
from ssl_vit.distributed import Processes
from ssl_vit.objectives.ema import EmaTeacher
from ssl_vit.objectives.objective import Objective, Observed
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.consensus import gather
from ssl_vit.training.measures import DTYPES, NormMeter, PhaseClock, peak_memory
from ssl_vit.training.optimizations import apply_optimizations
from ssl_vit.training.optimizer import LossScale, build_optimizer, freeze_at_first, set_schedules
from ssl_vit.training.plan import RunPlan, learning_rate_at, weight_decay_at
from ssl_vit.training.state_shards import (
    StateReader,
    StateShard,
    StateShards,
    copy_to_host,
    find_state_shards,
)
from ssl_vit.training.update import (
    GroupNorms,
    Measured,
    MicroBatches,
    Seconds,
    StepResult,
    over_ranks,
)
from ssl_vit.training.zero import ZeroModel, local_parts
from ssl_vit.training.zero_config import deepspeed_config

# First word of the device's randomness (drop path), distinct from the words in data/order.py
# and update.py.
_DEVICE_RANDOMNESS = 101

T = TypeVar("T")


class Engine:
    """One rank's part of a ZeRO-sharded training run.

    Args:
        objective: Built identically on every rank, on the CPU; moved to the device here.
        optimizer_config: The optimizer's hyperparameters.
        engine_config: How steps are computed.
        plan: The run's plan.
        processes: This rank among all.
        seed: The run's seed.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer_config: OptimizerConfig,
        engine_config: EngineConfig,
        plan: RunPlan,
        processes: Processes,
        seed: int,
    ) -> None:
        self.optimizer_config, self.plan, self.seed = optimizer_config, plan, seed
        self.processes, self.zero_stage = processes, engine_config.stage_of(processes.world_size)
        self.groups = freeze_at_first(
            objective.parameter_groups(),
            objective.backbone.parameters(),
            optimizer_config.freeze_steps,
        )
        self._in_step = apply_optimizations(objective, engine_config, plan.device)
        optimizer = build_optimizer(self.groups, optimizer_config, engine_config.fused_optimizer)
        self.zero = ZeroModel(
            objective,
            optimizer,
            deepspeed_config(engine_config, optimizer_config, plan),
            self.zero_stage,
            processes,
            optimizer_config.clip_norm,
        )
        for module in objective.modules():
            if isinstance(module, EmaTeacher):
                module.local_parts = local_parts
        self.device = self.zero.device
        self.clock, self.norms = PhaseClock(self.device), NormMeter(optimizer)
        self.last_batch: Any = None
        """This rank's latest micro-batch, on the device; for panels."""
        self.observed: list[Observed] = []
        """Features of this rank's micro-batches in the latest step; for monitors."""
        self.loss_scale = LossScale(plan.precision == "float16")
        if self.loss_scale.enabled:  # only ours
            self.zero.without_loss_scaling()

    def train_step(
        self, batches: Iterator[Loaded], step: int, measure_norms: bool = True
    ) -> StepResult:
        """One optimizer step over the next ``plan.accumulation`` micro-batches, followed by the
        objective's own `after_step` if it was applied.

        Args:
            batches: Micro-batches of this rank, on the CPU, each with its bad samples.
            step: Number of this step, from 0.
            measure_norms: Whether to fill in ``norms``.
        """
        self.norms.enabled = measure_norms
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, self.optimizer_config, self.plan)
        weight_decay = weight_decay_at(step, self.optimizer_config, self.plan)
        set_schedules(self.zero.param_groups, self.groups, step, learning_rate, weight_decay)
        torch.manual_seed(
            int(hash_words(self.seed, _DEVICE_RANDOMNESS, step, self.processes.rank)) >> 1
        )
        loss_scale = self.loss_scale.factor
        self.zero.scale_loss(loss_scale)
        seen = MicroBatches()
        for _ in range(self.plan.accumulation):
            self._micro_step(batches, step, seen)
        norm = self.zero.gradient_norm()
        applied = math.isfinite(norm)
        if applied:
            with self.clock.phase("after_step"):
                self.zero.module.after_step(step)
        self.observed = seen.observed
        found = over_ranks(self._measured(seen), self.processes, self.device, self.zero_stage > 0)
        loss = found.means.pop("loss")
        # A loss that is not finite says nothing about the scale.
        overflowed = math.isfinite(loss) and self.loss_scale.update(applied)
        # Rare, so the slow way is good enough.
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
            suspects=() if applied or overflowed else seen.suspects(self.processes),
            seconds=found.seconds,
            step_seconds=time.perf_counter() - began,
            peak_memory_bytes=found.peak_memory_bytes,
            samples=f"{found.digest:016x}",
            bad=tuple(sorted(sample for each in bad for sample in each)),
        )

    def _micro_step(self, batches: Iterator[Loaded], step: int, seen: MicroBatches) -> None:
        """One micro-batch; the last one of a step updates the weights."""
        with self.clock.phase("data", on_host=True):
            loaded = next(batches)
        with self.clock.phase("forward_backward"), self._in_step:
            self.last_batch = to_device(loaded.batch, self.device)
            output = self.zero.forward(self.last_batch, step)
            self.zero.backward(output.loss)
        seen.add(loaded, output)
        with self.clock.phase("optimizer"):
            self.zero.step()

    def copy_state(self) -> tuple[dict[str, Tensor], int]:
        """This rank's part of the state, copied to host memory, and the number of steps applied so
        far; every rank calls it.
        """
        state_shards = self._state_shards().to_save(self.processes)
        return copy_to_host(state_shards), self.zero.applied_updates()

    def load_state(self, files: Sequence[Path], num_applied: int) -> None:
        """Load a state that was saved at any ZeRO stage on any number of ranks.

        Args:
            files: The files of all ranks that saved it.
            num_applied: As returned by :meth:`copy_state`.

        Raises:
            KeyError: The files are those of another model.
        """
        StateReader(files).read_into(self._state_shards().to_load())
        self.zero.set_applied_updates(num_applied)
        self.zero.refresh_copies()

    def gathered(self) -> AbstractContextManager[Any]:
        """A context with the whole parameters on every rank, for reading; every rank enters it."""
        return self.zero.gathered()

    def take_note(self) -> str:
        """What to say of compilation after the first step, once; empty: nothing."""
        return self._in_step.take_note()

    def autocast(self) -> AbstractContextManager[Any]:
        """A context with training's precision, for forward passes outside of it (panels)."""
        if self.plan.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.plan.precision])

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.processes.world_size > 1:
            torch.distributed.barrier()

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is true on any rank; the same result on every rank."""
        if self.processes.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def release(self) -> None:
        """Undo DeepSpeed's setup for this engine; the process group stays for another engine."""
        self.barrier()
        self.zero.destroy()

    def close(self) -> None:
        """Leave the process group, so that the interpreter ends without warnings."""
        self.barrier()  # gloo's threads abort an interpreter that ends under them
        self.zero.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _state_shards(self) -> StateShards:
        state_shards = find_state_shards(self.zero)
        state_shards.shared.append(StateShard("loss_scale/state", 0, self.loss_scale.state))
        return state_shards

    def _measured(self, seen: MicroBatches) -> Measured:
        took = self.clock.take()
        return Measured(
            means=seen.means(),
            squares=self.norms.take(),
            seconds=Seconds(*(took.get(name, 0.0) for name in Seconds._fields)),
            peak_memory_bytes=peak_memory(self.device),
            digest=seen.digest(),
            num_bad=len(seen.bad),
        )

    def _norms(self, squares: Tensor, grad_norm: float) -> dict[str, GroupNorms]:
        norms = squares.sqrt()
        # The optimizer sees clipped gradients, all scaled by the same factor.
        clipped = float(squares[:, 0].sum().sqrt())
        norms[:, 0] *= grad_norm / clipped if clipped else 1.0
        rows = zip(self.norms.names, norms.tolist(), strict=True)
        return {name: GroupNorms(*row) for name, row in rows}


def to_device(batch: T, device: torch.device) -> T:
    """A NamedTuple of tensors on the device; copies overlap with computation in pinned memory."""
    if device.type == "cpu":
        return batch
    assert isinstance(batch, tuple)
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
