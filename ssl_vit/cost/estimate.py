"""`ssl-vit plan`: memory, time and disk space of a run, estimated without starting anything.

torch, which counts the cost of the network, is imported after everything else has been checked.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ssl_vit.cost.devices import DEVICES, GIB, Device
from ssl_vit.cost.disk import disk_of
from ssl_vit.cost.memory import USABLE, Memory, largest_micro_batch, memory_of
from ssl_vit.cost.network import FLOAT32, Arithmetic, Cost
from ssl_vit.errors import UserError
from ssl_vit.run.config import RunConfig
from ssl_vit.run.data import data_facts, open_data
from ssl_vit.run.given import settle_objective
from ssl_vit.training.config import EngineConfig, ZeroStage
from ssl_vit.training.length import Timed
from ssl_vit.training.plan import DataFacts, Machine, RunPlan, make_plan, with_cost, with_length
from ssl_vit.units import format_bytes

_IMAGENET = 1_281_167
# Usual sizes of photographs and shards: ImageNet-1k's mean, and the default of `pack`.
_IMAGE_BYTES, _SHARD_BYTES = 110_000, 268_435_456
# Settings that reduce memory, the cheapest first.
_REMEDIES: tuple[dict[str, object], ...] = (
    {"zero_stage": 2},
    {"activation_checkpointing": True},
    {"zero_stage": 2, "activation_checkpointing": True},
    {"zero_stage": 3, "activation_checkpointing": True},
    {"zero_stage": 3, "activation_checkpointing": True, "offload_optimizer": True},
)


@dataclass(frozen=True)
class Estimate:
    """The values that `ssl-vit plan` prints."""

    config: RunConfig
    plan: RunPlan
    device: Device
    mfu: float
    cost: Cost
    num_shards: int
    """Number of shards; 0: not known."""
    memory: dict[ZeroStage, Memory | None]
    """Memory of one GPU by ZeRO stage, everything else as configured; None if a stage is
    incompatible with the settings.
    """
    checkpointed: Memory
    """Memory at the configured stage with activation checkpointing."""
    largest_micro_batch: int
    """Largest micro-batch size at the configured stage; 0 if none fits."""
    remedies: tuple[str, ...]
    """Settings with which the run would fit, the smallest change first."""

    @property
    def usable_bytes(self) -> float:
        """Bytes of a GPU's memory that a run may use."""
        return USABLE * self.device.memory_bytes

    @property
    def images_per_second(self) -> float:
        """Throughput of all GPUs together."""
        config = self.config.engine
        peak = self.device.peak_flops(self.plan.precision, config.tf32)
        # Recomputation is work too: a second forward pass.
        again = 4 / 3 if config.activation_checkpointing else 1.0
        work = self.plan.step_flops_per_image * again
        return self.plan.world_size * peak * self.mfu / work

    @property
    def fits(self) -> bool:
        """Whether the run fits as configured."""
        chosen = self.memory[self.config.engine.zero_stage]
        return chosen is not None and chosen.fits(self.device.memory_bytes)

    @property
    def images_per_gpu(self) -> int:
        """Images per GPU and step."""
        return self.plan.micro_batch_size * self.plan.accumulation

    @property
    def hours(self) -> float:
        """Duration of the whole run."""
        images = self.plan.total_steps * self.config.data.global_batch_size
        return images / self.images_per_second / 3600


def make_estimate(config: RunConfig, gpus: int, device: str, mfu: float, images: int) -> Estimate:
    """Estimate the cost of a run.

    Args:
        config: Configuration of the run.
        gpus: Total number of GPUs, with one process each.
        device: A name in ``DEVICES``.
        mfu: Expected fraction of the device's peak, in (0, 1].
        images: Number of images in the data set, if ``data.shards`` is not set; 0: ImageNet-1k's.

    Raises:
        UserError: The device is unknown, batch, lanes and GPUs do not divide, or both shards and a
            number of images are given.
    """
    known = _known_device(device, mfu)
    data, num_shards = _read_data(config, images)
    fast: Literal["bfloat16", "float16"] = "bfloat16" if known.has_bfloat16 else "float16"
    machine = Machine(gpus, 1, "cuda", known.memory_bytes, fast)
    plan = make_plan(config, machine, data)

    from ssl_vit.cost.counting import count_cost

    config, arithmetic = _with_given(config, data), Arithmetic(plan.precision, "cuda")
    parts = (config.objective, config.backbone, arithmetic)
    cost = count_cost(*parts, config.optimizer.freeze_units)
    plan = with_cost(plan, config, machine, cost)
    engine, batches = config.engine, (plan.micro_batch_size, plan.accumulation)

    def memory(**changes: object) -> Memory | None:
        try:
            changed = EngineConfig.model_validate(engine.model_dump() | changes)
        except ValueError:
            return None
        return memory_of(cost, changed, gpus, batches, arithmetic)

    largest = largest_micro_batch(
        cost, engine, gpus, config.data.global_batch_size, arithmetic, known.memory_bytes
    )
    remedies = [
        " ".join(f"engine.{name}={str(value).lower()}" for name, value in changes.items())
        for changes in _REMEDIES
        if (found := memory(**changes)) and found.fits(known.memory_bytes)
    ]
    if largest:
        remedies.insert(0, f"engine.micro_batch_size={largest}")
    checkpointed = memory(activation_checkpointing=True)
    assert checkpointed is not None
    made = Estimate(
        config=config,
        plan=plan,
        device=known,
        mfu=mfu,
        cost=cost,
        num_shards=num_shards,
        memory={stage: memory(zero_stage=stage) for stage in get_args(ZeroStage)},
        checkpointed=checkpointed,
        largest_micro_batch=largest,
        remedies=tuple(remedies),
    )
    return _with_estimated_steps(made) if config.schedule.unit == "minutes" else made


def _with_given(config: RunConfig, data: DataFacts) -> RunConfig:
    """The config with the network that its objective reads, if one is named."""
    given = config.objective.given
    if given is None or not given.path:
        return config
    return settle_objective(config, data.num_samples)[0]


def _known_device(name: str, mfu: float) -> Device:
    name = name.lower()
    if name not in DEVICES:
        raise UserError(f"no device named '{name}'", f"known devices: {', '.join(DEVICES)}")
    if not 0 < mfu <= 1:
        raise UserError(
            f"--mfu {mfu:g} is not a fraction of the peak",
            "give a number above 0 and up to 1; 0.4 is common",
        )
    return DEVICES[name]


def _with_estimated_steps(estimate: Estimate) -> Estimate:
    """The estimate with as many steps as fit into the minutes at the estimated rate."""
    config, rate = estimate.config, estimate.images_per_second
    steps = round(60 * config.schedule.length * rate / config.data.global_batch_size)
    timed = Timed(max(1, steps), rate)
    return replace(estimate, plan=with_length(estimate.plan, config, timed))


def _read_data(config: RunConfig, images: int) -> tuple[DataFacts, int]:
    """The data of the run and its number of shards; 0 shards if only a number of images is
    given.
    """
    if not config.data.sources:
        return DataFacts(images or _IMAGENET, "assumed"), 0
    if images:
        raise UserError("both data.shards and --images are given", "leave out --images")
    _, shards = open_data(config)
    return data_facts(shards), len(shards.shards) if shards else 0


def describe(estimate: Estimate) -> list[str]:
    """The lines above the memory table."""
    config, plan, cost = estimate.config, estimate.plan, estimate.cost
    own = cost.trained - cost.backbone
    teacher = f", and a teacher with {cost.frozen:,}" if cost.frozen else ""
    batch, gpus = config.data.global_batch_size, plan.world_size
    peak = estimate.device.peak_flops(plan.precision, config.engine.tf32)
    epoch = f"{plan.total_epochs:g} epochs of {plan.samples_per_epoch:,} images"
    if plan.data_fingerprint == "assumed":
        assumed = "as in ImageNet-1k" if plan.num_samples == _IMAGENET else "as given by --images"
        epoch += f" ({assumed}; for your data, set data.shards=SHARDS or --images N)"
    step_flops = plan.step_flops_per_image * batch
    rows = {
        "parameters": f"{cost.trained:,} trained (backbone {cost.backbone:,}, "
        f"objective {own:,}){teacher}",
        "compute": f"{plan.step_flops_per_image / 1e9:,.1f} GFLOP per image, forward and backward; "
        f"{step_flops / 1e12:,.1f} TFLOP per step",
        "batch": f"{batch:,} images = {gpus} GPUs × {plan.accumulation} × {plan.micro_batch_size}",
        "length": _describe_length(estimate, epoch),
        "time": f"{_format_hours(estimate.hours)} at {estimate.images_per_second:,.0f} images/s, "
        f"assuming {estimate.mfu:.0%} of the peak of {peak / 1e12:,.0f} TFLOP/s (--mfu) and no "
        "other bottleneck",
        "disk": _describe_disk(estimate),
    }
    if (given := config.objective.given) is not None and not given.path:
        rows[given.setting] = (
            f"none given: assumed to be as large as the backbone; for yours, set objective."
            f"{given.setting}=RUN"
        )
    shards, assumed = estimate.num_shards, ""
    if not shards:
        shards = -(-plan.num_samples * _IMAGE_BYTES // _SHARD_BYTES)
        assumed = f", assuming images of {format_bytes(_IMAGE_BYTES)} and shards of 256 MiB"
    rows["shards"] = f"{shards:,}: {shards / gpus:,.1f} per GPU and epoch{assumed}"
    if config.engine.offload_optimizer:
        host = 3 * FLOAT32 * cost.trained / gpus / GIB
        rows["host memory"] = f"{host:,.2f} GiB per GPU, for its part of the optimizer state"
    device = f"{estimate.device.title} with {estimate.device.memory_gib} GiB"
    title = f"{config.recipe} on {gpus} × {device}, {plan.precision}"
    if batch > plan.samples_per_epoch:
        rows["note"] = f"a batch is larger than an epoch of {plan.samples_per_epoch:,} images"
    return [title, "", *(f"{name:12} {text}" for name, text in rows.items())]


def _describe_length(estimate: Estimate, epoch: str) -> str:
    schedule, steps = estimate.config.schedule, f"{estimate.plan.total_steps:,} steps"
    if schedule.unit != "minutes":
        return f"{steps}, {epoch}"
    return (
        f"{schedule.length:g} minutes; the number of steps follows from the rate measured at the "
        f"start, at the rate below about {steps}, {epoch}"
    )


def memory_rows(estimate: Estimate) -> list[tuple[str, ...]]:
    """One row per ZeRO stage: its parts and their sum in GiB, and whether it fits."""
    rows = []
    for stage, memory in estimate.memory.items():
        chosen = " *" if stage == estimate.config.engine.zero_stage else ""
        if memory is None:
            rows.append((f"{stage}{chosen}", *[""] * 6, "n/a"))
            continue
        parts = (
            memory.weights + memory.gathered,
            memory.gradients,
            memory.optimizer,
            memory.teacher,
            memory.forward,
            memory.total,
        )
        fits = "yes" if memory.fits(estimate.device.memory_bytes) else "no"
        rows.append((f"{stage}{chosen}", *(f"{part / GIB:.2f}" for part in parts), fits))
    return rows


def advise(estimate: Estimate) -> list[str]:
    """The lines below the table: what fits, and which settings to change if the run does not."""
    engine, room = estimate.config.engine, estimate.usable_bytes
    chosen = estimate.memory[engine.zero_stage]
    assert chosen is not None
    largest = estimate.largest_micro_batch
    at_once = f"{largest} fit at once (which engine.micro_batch_size=auto selects)"
    lines = [
        f"* configured engine.zero_stage. Of {estimate.images_per_gpu} images per GPU and step, "
        f"{at_once if largest else 'none fits'}.",
        "total: weights, optimizer and teacher, plus the larger of activations (at the end of a "
        "forward pass, with earlier gradients) and gradients (in the optimizer step).",
    ]
    if not engine.activation_checkpointing:
        lines.append(
            f"With engine.activation_checkpointing=true: activations "
            f"{estimate.checkpointed.forward / GIB:.2f} GiB, total "
            f"{estimate.checkpointed.total / GIB:.2f} GiB, a third more computation."
        )
    if estimate.fits:
        return lines
    remedies = "; or ".join(estimate.remedies) or "more GPUs, or GPUs with more memory"
    return [
        f"Does not fit: needs {chosen.total / GIB:.1f} GiB per GPU at ZeRO-{engine.zero_stage}, "
        f"{room / GIB:.0f} of {estimate.device.memory_gib} GiB usable. Try: {remedies}.",
        *lines,
    ]


def print_estimate(config: RunConfig, gpus: int, device: str, mfu: float, images: int) -> bool:
    """Estimate the cost of a run and print it; arguments as in :func:`make_estimate`.

    Returns:
        Whether the run fits.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    estimate = make_estimate(config, gpus, device, mfu, images)
    console = Console(highlight=False, width=max(80, Console().width))
    console.print("\n".join(describe(estimate)), markup=False, soft_wrap=True)
    console.print(
        f"\nMemory per GPU in GiB, {estimate.usable_bytes / GIB:.0f} of "
        f"{estimate.device.memory_gib} usable ({USABLE:.0%}):"
    )
    table = Table(box=SIMPLE, pad_edge=False)
    heads = ("ZeRO", "weights", "gradients", "optimizer", "teacher", "activations", "total", "fits")
    for head in heads:
        table.add_column(head, justify="left" if head == "ZeRO" else "right")
    for row in memory_rows(estimate):
        table.add_row(*row)
    console.print(table)
    console.print("\n".join(advise(estimate)), markup=False, soft_wrap=True)
    return estimate.fits


def _describe_disk(estimate: Estimate) -> str:
    disk = disk_of(estimate.config, estimate.plan.total_steps, estimate.cost)
    checkpoint, export = format_bytes(disk.checkpoint), format_bytes(disk.export)
    return (
        f"{format_bytes(disk.total)} at the end: {disk.num_checkpoints} checkpoints of "
        f"{checkpoint}, {disk.num_exports} exports of {export}"
    )


def _format_hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} minutes" if hours > 1.5 / 60 else "about a minute or less"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
