"""What follows from a config, the machine and the data: one pure function, its result frozen and
logged.

No torch here: what cannot work is reported before anything slow is loaded. What torch counts in the
network (`cost/counting.py`) is added later, by `with_cost`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, assert_never

from ssl_vit.config import Config
from ssl_vit.cost.memory import USABLE, largest_micro_batch, memory_of
from ssl_vit.cost.network import Arithmetic, Cost, Precision
from ssl_vit.data.config import BUFFERS_IN_USE
from ssl_vit.data.order import lanes_of_rank, too_few_samples_error
from ssl_vit.errors import UserError
from ssl_vit.schedules import cosine, warmup_cosine
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.length import NOT_TIMED, Timed, steps_of
from ssl_vit.training.split import largest_divisor, split_batch

if TYPE_CHECKING:
    from ssl_vit.run.config import RunConfig

# Bytes of pixels that the data workers of a process may keep ready.
_MOST_PREFETCHED = 2**30
# The recipes' micro-batch size.
_USUAL_MICRO_BATCH = 64


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know about the machine."""

    world_size: int
    """Total number of processes."""
    cores: int
    """Processor cores for this process."""
    device: Literal["cpu", "cuda"]
    memory_bytes: int = 0
    """Memory of this process; 0: not known."""
    fast_precision: Precision = "bfloat16"
    """Precision that `engine.precision=auto` selects."""


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know about the data."""

    num_samples: int
    fingerprint: str
    sets: tuple[tuple[str, int], ...] = ()
    """(source, samples) of every set."""


class SetPlan(Config):
    """How a run uses one data set."""

    source: str
    num_samples: int
    share: float
    """Share of every batch."""
    times_seen: float
    """How often the run sees each of its images: above 1 repeatedly, below 1 only a part."""


class RunPlan(Config):
    """Values derived from the config, never set by a user. Written to `plan.json`."""

    world_size: int
    device: Literal["cpu", "cuda"]
    precision: Precision
    """Precision of matrix products."""
    micro_batch_size: int
    """Images per forward pass and process."""
    micro_batch_found_for: str
    """Conditions for which `micro_batch_size=auto` was determined; a run resumed under the same
    conditions reuses the size. Empty if it was configured or is not determined yet.
    """
    accumulation: int
    """Micro-batches per step and process."""
    workers: int
    """Data workers per process."""
    prefetch: int
    """Micro-batches that each data worker prepares ahead."""
    pin_memory: bool
    """Whether batches are in pinned memory, from which a GPU copies asynchronously."""
    threads: int
    """Torch's threads in this process."""
    num_samples: int
    data_fingerprint: str
    sets: tuple[SetPlan, ...]
    samples_per_epoch: int
    """Samples per epoch; fewer than `data.lanes` are left out, different ones in each epoch."""
    total_steps: int
    """Total number of steps; 0 if the length is in minutes and nothing was measured yet."""
    warmup_steps: int
    total_epochs: float
    measured_images_per_second: float
    """Rate from which the steps were derived if the length is in minutes; otherwise 0."""
    peak_learning_rate: float
    trained_parameters: int = 0
    """Number of trained parameters; 0 until counted."""
    step_flops_per_image: float = 0.0
    """Operations of forward and backward pass, without recomputation; 0 until counted."""


def make_plan(
    config: "RunConfig",
    machine: Machine,
    data: DataFacts,
    earlier: tuple[str, int] = ("", 0),
    timed: Timed = NOT_TIMED,
) -> RunPlan:
    """The plan as far as it does not depend on the network's cost.

    Args:
        config: The run's configuration.
        machine: The machine it runs on.
        data: The data it trains on.
        earlier: The conditions for which an earlier start of the run determined its micro-batch
            size, and that size; reused under the same conditions.
        timed: The number of steps derived from minutes, if the length is in minutes.

    Raises:
        UserError: Batch, lanes, processes and micro-batch do not divide, or not as the objective
            requires.
    """
    batch, lanes = config.data.global_batch_size, config.data.lanes
    lanes_of_rank(lanes, 0, machine.world_size)
    if data.num_samples < lanes:
        raise too_few_samples_error(data.num_samples, lanes, batch, machine.world_size)
    arithmetic = choose_arithmetic(config.engine, machine)
    wanted, same = config.engine.micro_batch_size, found_for(config, machine, arithmetic)
    if wanted == "auto" and earlier[0] == same:
        wanted = earlier[1]
    elif wanted == "auto":
        same, wanted = "", largest_divisor(batch // machine.world_size, _USUAL_MICRO_BATCH)
    micro, accumulation = split_batch(batch, machine.world_size, wanted, lanes)
    _check_micro_batch(config, micro)
    workers = choose_workers(config.engine.workers, machine.cores)
    return RunPlan(
        world_size=machine.world_size,
        device=machine.device,
        precision=arithmetic.precision,
        micro_batch_size=micro,
        micro_batch_found_for=same,
        accumulation=accumulation,
        workers=workers,
        prefetch=_prefetch(config, micro, accumulation, workers),
        pin_memory=machine.device == "cuda",
        threads=machine.cores,
        num_samples=data.num_samples,
        data_fingerprint=data.fingerprint,
        **_length(config, data, timed),
        peak_learning_rate=peak_learning_rate(config.optimizer, batch),
    )


def found_for(config: "RunConfig", machine: Machine, arithmetic: Arithmetic) -> str:
    """What the largest micro-batch depends on, as text; empty if its size was configured."""
    engine = config.engine
    if engine.micro_batch_size != "auto":
        return ""
    # A CPU's free memory is never twice the same.
    memory = machine.memory_bytes if machine.device == "cuda" else 0
    return (
        f"{machine.world_size} × {machine.device} of {memory} bytes, {arithmetic.precision}, "
        f"ZeRO-{engine.zero_stage}, checkpointing {engine.activation_checkpointing}, "
        f"offload {engine.offload_optimizer}"
    )


def with_cost(plan: RunPlan, config: "RunConfig", machine: Machine, cost: Cost) -> RunPlan:
    """The same plan with what was counted, and with the micro-batch size if it is still open.

    Raises:
        UserError: Not even one image fits, or not as many as the objective requires.
    """
    if is_micro_batch_open(plan, config):
        arithmetic = choose_arithmetic(config.engine, machine)
        micro = find_micro_batch(config, machine, cost, arithmetic)
        _check_micro_batch(config, micro)
        same = found_for(config, machine, arithmetic)
        plan = with_micro_batch(plan, micro, config)
        plan = plan.model_copy(update={"micro_batch_found_for": same})
    counted = {"trained_parameters": cost.trained, "step_flops_per_image": cost.step_flops}
    return plan.model_copy(update=counted)


def is_micro_batch_open(plan: RunPlan, config: "RunConfig") -> bool:
    """Whether the micro-batch size is still to be determined."""
    return config.engine.micro_batch_size == "auto" and not plan.micro_batch_found_for


def find_micro_batch(
    config: "RunConfig", machine: Machine, cost: Cost, arithmetic: Arithmetic
) -> int:
    """The micro-batch size that `engine.micro_batch_size=auto` selects.

    Raises:
        UserError: Not even one image fits.
    """
    batch, world_size = config.data.global_batch_size, machine.world_size
    if not machine.memory_bytes:  # not known
        return largest_divisor(batch // world_size, _USUAL_MICRO_BATCH)
    found = largest_micro_batch(
        cost, config.engine, world_size, batch, arithmetic, machine.memory_bytes
    )
    if not found:
        least = memory_of(cost, config.engine, world_size, (1, batch), arithmetic).total
        raise UserError(
            f"not even one image at a time fits: needs {least / 2**30:.1f} GiB, {USABLE:.0%} of "
            f"{machine.memory_bytes / 2**30:.1f} GiB usable",
            "set a higher engine.zero_stage on more processes, engine.activation_checkpointing=true"
            " or engine.offload_optimizer=true; `ssl-vit plan` shows the effect of each",
        )
    return found


def choose_arithmetic(engine: EngineConfig, machine: Machine) -> Arithmetic:
    """How this machine computes matrix products.

    Raises:
        UserError: The config requests bfloat16, which the GPU does not support.
    """
    precision = engine.precision
    if precision == "bfloat16" and machine.fast_precision == "float16":
        raise UserError(
            "engine.precision=bfloat16, but this GPU does not support bfloat16",
            "set engine.precision=auto, which selects float16 with loss scaling here",
        )
    return Arithmetic(machine.fast_precision if precision == "auto" else precision, machine.device)


def with_micro_batch(plan: RunPlan, micro_batch_size: int, config: "RunConfig") -> RunPlan:
    """The same plan with a smaller micro-batch, a divisor of a process's share."""
    accumulation = plan.micro_batch_size * plan.accumulation // micro_batch_size
    prefetch = _prefetch(config, micro_batch_size, accumulation, plan.workers)
    changes = {"accumulation": accumulation, "prefetch": prefetch}
    return plan.model_copy(update={"micro_batch_size": micro_batch_size, **changes})


def with_length(plan: RunPlan, config: "RunConfig", timed: Timed) -> RunPlan:
    """The same plan with the number of steps derived from minutes."""
    sets = tuple((each.source, each.num_samples) for each in plan.sets)
    data = DataFacts(plan.num_samples, plan.data_fingerprint, sets)
    return plan.model_copy(update=_length(config, data, timed))


def _length(config: "RunConfig", data: DataFacts, timed: Timed) -> dict[str, Any]:
    """The fields of a plan that depend on the length of the run."""
    batch, lanes = config.data.global_batch_size, config.data.lanes
    samples_per_epoch = data.num_samples // lanes * lanes
    total, warmup = steps_of(config.schedule, samples_per_epoch, batch, timed)
    return {
        "sets": plan_sets(data, config.data.weights, total * batch),
        "samples_per_epoch": samples_per_epoch,
        "total_steps": total,
        "warmup_steps": warmup,
        "total_epochs": round(total * batch / samples_per_epoch, 3),
        "measured_images_per_second": timed.images_per_second,
    }


def plan_sets(data: DataFacts, weights: Sequence[float], num_seen: int) -> tuple[SetPlan, ...]:
    """Each set's share of a batch, and how often a run of ``num_seen`` images sees its images."""
    shares = weights or [num_samples for _, num_samples in data.sets]
    return tuple(
        SetPlan(
            source=source,
            num_samples=num_samples,
            share=round(share / sum(shares), 4),
            times_seen=round(num_seen * share / sum(shares) / num_samples, 3),
        )
        for (source, num_samples), share in zip(data.sets, shares, strict=True)
    )


def choose_workers(configured: int | Literal["auto"], cores: int) -> int:
    """Data workers of a process with ``cores`` cores: one core is left for the model."""
    return min(max(cores - 1, 1), 16) if configured == "auto" else configured


def _prefetch(config: "RunConfig", micro: int, accumulation: int, workers: int) -> int:
    if config.engine.prefetch != "auto":
        return config.engine.prefetch
    pixels = config.objective.crop_pixels(config.backbone)
    return choose_prefetch(micro, accumulation, workers, pixels)


def _check_micro_batch(config: "RunConfig", micro: int) -> None:
    try:
        config.objective.check_micro_batch(micro)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise UserError(problem, remedy) from None


def choose_prefetch(micro_batch_size: int, accumulation: int, workers: int, pixels: int) -> int:
    """Micro-batches that a data worker prepares ahead: for two steps in all, within bounded memory
    if at least one fits.

    Args:
        micro_batch_size: Images per micro-batch.
        accumulation: Micro-batches per step.
        workers: Data workers.
        pixels: Number of pixels in all views of an image.
    """
    workers = max(workers, 1)
    wanted = -(-2 * accumulation // workers) + 1
    fits = _MOST_PREFETCHED // (workers * micro_batch_size * 3 * pixels) - BUFFERS_IN_USE
    return max(1, min(max(wanted, 2), fits, 8))


def peak_learning_rate(optimizer: OptimizerConfig, batch: int) -> float:
    """The learning rate at the end of the warm-up."""
    match optimizer.learning_rate_rule:
        case "linear_256":
            return optimizer.base_learning_rate * batch / 256
        case "sqrt_1024":
            return optimizer.base_learning_rate * (batch / 1024) ** 0.5
        case "absolute":
            return optimizer.base_learning_rate
    assert_never(optimizer.learning_rate_rule)


def learning_rate_at(step: int, optimizer: OptimizerConfig, plan: RunPlan) -> float:
    """Learning rate of step ``step``."""
    return warmup_cosine(
        step,
        plan.total_steps,
        plan.warmup_steps,
        plan.peak_learning_rate,
        optimizer.final_learning_rate,
    )


def weight_decay_at(step: int, optimizer: OptimizerConfig, plan: RunPlan) -> float:
    """Weight decay of step ``step``: a cosine from its start to its end, without warm-up."""
    return cosine(
        optimizer.weight_decay, optimizer.final_weight_decay, step / max(1, plan.total_steps)
    )
