"""The only file that imports deepspeed: ZeRO-sharded updates behind one verb, `train_step`.

Surprises it hides (DeepSpeed 0.19): `backward` exactly once a micro-batch, or ZeRO-1/2 sum wrongly
in silence; the shared-memory operator would be compiled for 40 seconds at start; ZeRO-0 in float32
reports no gradient norm.
Set the environment variable DS_ACCELERATOR before importing this file: deepspeed reads it at
import.
"""

import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import deepspeed
import deepspeed.comm
import deepspeed.ops
import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.order import hash_words, splitmix64
from ssl_vit.distributed import Processes, complete_environment
from ssl_vit.objectives.objective import Objective
from ssl_vit.training.agreement import gather
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.optimizer import build_optimizer, set_schedules
from ssl_vit.training.pieces import Pieces, applied_updates, find_pieces, set_applied_updates
from ssl_vit.training.plan import RunPlan, learning_rate_at, weight_decay_at
from ssl_vit.training.state_file import StateReader, copy_to_host

# First word of the device's randomness (drop path), distinct from the words in data/order.py.
_DEVICE_RANDOMNESS = 101
_DIGEST_KEY = hash_words(102)

T = TypeVar("T")


class LoadedBatch(Protocol):
    """What the loader hands over."""

    @property
    def batch(self) -> Any:
        """A micro-batch as the objective takes it."""
        ...

    @property
    def bad(self) -> tuple[BadSample, ...]:
        """Its samples that could not be decoded and were replaced."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one optimizer update did, averaged over micro-batches and ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    weight_decay: float
    applied: bool
    """Whether the parameters moved; not where the loss or a gradient was not finite."""
    suspects: tuple[int, ...]
    """Where it was not: samples of micro-batches, on all ranks, without a finite loss; or all."""
    data_seconds: float
    """Waiting for the loader, on this rank."""
    step_seconds: float
    """The whole update, on this rank."""
    samples: str
    """16 hex digits of the samples seen by all ranks, whatever their order."""
    bad: tuple[BadSample, ...]
    """Of all ranks: samples that could not be decoded and were replaced."""
    batch: Any
    """This rank's last micro-batch, on the device; for panels."""


def deepspeed_config(engine: EngineConfig, optimizer: OptimizerConfig, plan: RunPlan) -> dict:
    """DeepSpeed's own config; pure, with a golden JSON in the tests."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": _zero_config(engine, plan.device),
        # We bring torch's AdamW; DeepSpeed's own optimizers are compiled at first use.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if engine.precision == "bfloat16":
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            # Only says which gradients travel in bfloat16: none, so that ranks add up in float32.
            "lower_precision_safe_modules": [],
        }
    return config


def _zero_config(engine: EngineConfig, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    config: dict[str, Any] = {"stage": engine.zero_stage}
    whole_below = engine.zero3_whole_below
    if engine.zero_stage == 3:
        config["stage3_param_persistence_threshold"] = whole_below
    elif device == "cpu":
        # Contiguous copies speed nothing up on a CPU; they are two more copies of each gradient.
        config["contiguous_gradients"] = False
    return config


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
        self.processes, self.precision = processes, engine.precision
        self.groups = objective.parameter_groups()
        # Any: deepspeed's own annotations are too loose to check against.
        parts: tuple[Any, ...] = deepspeed.initialize(
            model=objective,
            optimizer=build_optimizer(self.groups, optimizer),
            config=deepspeed_config(engine, optimizer, plan),
            dist_init_required=False,
        )
        self.engine, self.optimizer = parts[0], parts[1]
        self.device = torch.device(self.engine.device)
        self.zero_stage = engine.zero_stage

    def train_step(self, batches: Iterator[LoadedBatch], step: int) -> StepResult:
        """One optimizer update over the next ``plan.accumulation`` micro-batches.

        Args:
            batches: Micro-batches of this rank, on the CPU, each with its bad samples.
            step: Which update this is, from 0.
        """
        began, waited = time.perf_counter(), 0.0
        learning_rate = learning_rate_at(step, self.optimizer_config, self.plan)
        weight_decay = weight_decay_at(step, self.optimizer_config, self.plan)
        set_schedules(self.optimizer.param_groups, self.groups, step, learning_rate, weight_decay)
        torch.manual_seed(
            int(hash_words(self.seed, _DEVICE_RANDOMNESS, step, self.processes.rank)) >> 1
        )
        outputs: list[dict[str, Tensor]] = []
        digest, grad_norm, batch = np.uint64(0), torch.tensor(0.0), None
        bad: list[BadSample] = []
        numbers: list[Tensor] = []
        for _ in range(self.plan.accumulation):
            asked = time.perf_counter()
            loaded = next(batches)
            waited += time.perf_counter() - asked
            bad += loaded.bad
            digest = add_digest(digest, loaded.batch.numbers)
            numbers.append(loaded.batch.numbers)
            batch = to_device(loaded.batch, self.device)
            output = self.engine(batch, step)
            self.engine.backward(output.loss)
            outputs.append({"loss": output.loss.detach(), **output.metrics})
            if self.zero_stage == 0 and self.engine.is_gradient_accumulation_boundary():
                grad_norm = self._whole_grad_norm()
                if not torch.isfinite(grad_norm):
                    # The other stages look for themselves. AdamW passes over what has no gradient.
                    self.engine.module.zero_grad(set_to_none=True)
            self.engine.step()
        means = self._average(outputs)
        if self.zero_stage > 0:
            grad_norm = self.engine.get_global_grad_norm()
        norm = float(grad_norm)
        applied = math.isfinite(norm)
        suspects = () if applied else self._find_suspects(outputs, numbers)
        loss = means.pop("loss")
        digest, all_bad = self._join_ranks(digest, bad)
        return StepResult(
            loss=loss,
            metrics=means,
            grad_norm=norm,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            applied=applied,
            suspects=suspects,
            data_seconds=waited,
            step_seconds=time.perf_counter() - began,
            samples=f"{int(digest):016x}",
            bad=all_bad,
            batch=batch,
        )

    def copy_state(self) -> tuple[dict[str, Tensor], int]:
        """This rank's part of the state, copied to host memory, and the updates it has seen
        applied; every rank calls it.
        """
        pieces = self._pieces().to_save(self.processes)
        return copy_to_host(pieces), applied_updates(self.optimizer)

    def load_state(self, files: Sequence[Path], num_applied: int) -> None:
        """Take over a state, whoever saved it: at any ZeRO stage, on any number of ranks.

        Args:
            files: Of all ranks that saved it.
            num_applied: As :meth:`copy_state` gave it.

        Raises:
            KeyError: They are of another model.
        """
        StateReader(files).read_into(self._pieces().to_load())
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
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

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

    def close(self) -> None:
        """Leave the process group, so that the interpreter ends without warnings."""
        self.barrier()  # gloo's threads abort an interpreter that ends under them
        self.engine.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _find_suspects(
        self, outputs: list[dict[str, Tensor]], numbers: list[Tensor]
    ) -> tuple[int, ...]:
        """Samples of the micro-batches with a loss that is not finite, of all ranks; else all."""
        parts = zip(numbers, outputs, strict=True)
        bad = [part for part, output in parts if not torch.isfinite(output["loss"])]
        found = gather((_listed(bad), _listed(numbers)), self.processes)
        named = [number for part, _ in found for number in part]
        return tuple(named or [number for _, part in found for number in part])

    def _pieces(self) -> Pieces:
        module = self.engine.module
        return find_pieces(module, self.optimizer, self.zero_stage, self.processes)

    def _whole_grad_norm(self) -> Tensor:
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def _average(self, outputs: list[dict[str, Tensor]]) -> dict[str, float]:
        """Means over micro-batches and ranks, by one small reduction."""
        names = list(outputs[0])
        values = torch.stack([torch.stack([o[name].float() for name in names]) for o in outputs])
        means = values.mean(dim=0)
        if self.processes.world_size > 1:
            deepspeed.comm.all_reduce(means)
            means = means / self.processes.world_size
        return dict(zip(names, means.tolist(), strict=True))

    def _join_ranks(
        self, digest: np.uint64, bad: list[BadSample]
    ) -> tuple[np.uint64, tuple[BadSample, ...]]:
        """The digest and the bad samples of all ranks; the same answer on each."""
        if self.processes.world_size > 1:
            whole = torch.tensor([digest.astype(np.int64).item(), len(bad)], device=self.device)
            deepspeed.comm.all_reduce(whole)
            digest = np.int64(whole[0].item()).astype(np.uint64)
            if whole[1].item():  # rare, so the slow way will do
                bad = [sample for each in gather(bad, self.processes) for sample in each]
        return digest, tuple(sorted(bad))


def _listed(parts: list[Tensor]) -> list[int]:
    return [int(number) for part in parts for number in part]


def add_digest(digest: np.uint64, numbers: Tensor) -> np.uint64:
    """Add samples to an order-free digest: the sum, modulo 2⁶⁴, of their scrambled numbers."""
    words = splitmix64(numbers.cpu().numpy().astype(np.uint64), _DIGEST_KEY)
    with np.errstate(over="ignore"):
        return digest + words.sum(dtype=np.uint64)


def to_device(batch: T, device: torch.device) -> T:
    """A NamedTuple of tensors on the device; copies overlap with computation where memory is
    pinned.
    """
    if device.type == "cpu":
        return batch
    assert isinstance(batch, tuple)
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
