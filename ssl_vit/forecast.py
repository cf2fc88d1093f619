"""`ssl-vit plan`: what a run will need and take, worked out without starting anything. No torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from ssl_vit.errors import UserError
from ssl_vit.models.cost import Arithmetic, Cost, backbone_cost
from ssl_vit.objectives.cost import objective_cost
from ssl_vit.quantities import format_bytes
from ssl_vit.run_config import RunConfig
from ssl_vit.run_data import data_facts, open_data
from ssl_vit.training.devices import DEVICES, GIB, Device
from ssl_vit.training.memory import USABLE, Memory, largest_micro_batch, memory_of
from ssl_vit.training.plan import DataFacts, Machine, RunPlan, make_plan

_IMAGENET = 1_281_167
_FLOAT32 = 4
ZeroStage = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Forecast:
    """What `ssl-vit plan` prints."""

    config: RunConfig
    plan: RunPlan
    device: Device
    mfu: float
    cost: Cost
    backbone_parameters: int
    num_shards: int
    """0: not known."""
    memory: dict[ZeroStage, Memory]
    """Of one GPU, by ZeRO stage, everything else as configured."""
    checkpointed: Memory
    """At the configured stage with activation checkpointing."""
    largest_micro_batch: int
    """At the configured stage, without asking whether it divides the batch well."""

    @property
    def usable_bytes(self) -> float:
        """What of a GPU's memory a run may fill."""
        return USABLE * self.device.memory * GIB

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        config = self.config.engine
        peak = self.device.peak_flops(self.plan.precision, config.tf32)
        # What is computed again is work too, a second forward pass.
        again = 4 / 3 if config.activation_checkpointing else 1.0
        work = self.plan.step_flops_per_image * again
        return self.plan.world_size * peak * self.mfu / work

    @property
    def images_per_gpu(self) -> int:
        """Of one update."""
        return self.plan.micro_batch_size * self.plan.accumulation

    @property
    def hours(self) -> float:
        """Of the whole run."""
        images = self.plan.total_steps * self.config.data.global_batch_size
        return images / self.images_per_second / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Of one resumable checkpoint, all ranks together: weights and two moments."""
        return _FLOAT32 * (3 * self.cost.trained + self.cost.frozen)


def make_forecast(config: RunConfig, gpus: int, device: str, mfu: float, images: int) -> Forecast:
    """Work it out.

    Args:
        config: What is planned.
        gpus: Processes in all, one for each.
        device: A name in ``DEVICES``.
        mfu: Share of the device's peak that is expected to be reached, in (0, 1].
        images: In the data set, where ``data.shards`` does not say; 0: as many as ImageNet-1k.

    Raises:
        UserError: The device is not known, or batch, lanes and GPUs do not divide.
    """
    if device not in DEVICES:
        raise UserError(f"no device named '{device}' is known", f"devices: {', '.join(DEVICES)}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} is no share of the peak", "0.4 is common; at most 1")
    known = DEVICES[device]
    data, num_shards = DataFacts(images or _IMAGENET, "assumed"), 0
    if config.data.sources and not images:
        _, shards = open_data(config)
        data, num_shards = data_facts(shards), len(shards.shards) if shards else 0
    fast: Literal["bfloat16", "float16"] = "bfloat16" if known.has_bfloat16 else "float16"
    plan = make_plan(config, Machine(gpus, 1, "cuda", known.memory * GIB, fast), data)
    arithmetic = Arithmetic(plan.precision, "cuda")
    cost = objective_cost(config.objective, config.backbone, arithmetic)
    engine, batches = config.engine, (plan.micro_batch_size, plan.accumulation)

    def memory(**changes: object) -> Memory:
        return memory_of(cost, engine.model_copy(update=changes), gpus, batches, arithmetic)

    return Forecast(
        config=config,
        plan=plan,
        device=known,
        mfu=mfu,
        cost=cost,
        backbone_parameters=backbone_cost(config.backbone, 0, arithmetic).trained,
        num_shards=num_shards,
        memory={stage: memory(zero_stage=stage) for stage in get_args(ZeroStage)},
        checkpointed=memory(activation_checkpointing=True),
        largest_micro_batch=largest_micro_batch(
            cost, engine, gpus, config.data.global_batch_size, arithmetic, known.memory * GIB
        ),
    )


def describe(forecast: Forecast) -> list[str]:
    """The lines above the table of memory."""
    config, plan, cost = forecast.config, forecast.plan, forecast.cost
    own = cost.trained - forecast.backbone_parameters
    teacher = f", a teacher of {cost.frozen:,}" if cost.frozen else ""
    batch, gpus = config.data.global_batch_size, plan.world_size
    peak = forecast.device.peak_flops(plan.precision, config.engine.tf32)
    epoch = f"{plan.total_epochs:g} epochs of {plan.samples_per_epoch:,} images"
    if plan.data_fingerprint == "assumed":
        assumed = "as in ImageNet-1k" if plan.num_samples == _IMAGENET else "as said"
        epoch += f" ({assumed}; data.shards=SHARDS or --images N says how many yours are)"
    update = plan.step_flops_per_image * batch
    rows = {
        "parameters": f"{cost.trained:,} trained: backbone {forecast.backbone_parameters:,}, "
        f"the objective's own {own:,}{teacher}",
        "compute": f"{plan.step_flops_per_image / 1e9:,.1f} GFLOP an image, forward and backward; "
        f"{update / 1e12:,.1f} TFLOP an update",
        "batch": f"{batch:,} images = {gpus} GPUs × {plan.accumulation} × {plan.micro_batch_size}",
        "length": f"{plan.total_steps:,} updates, {epoch}",
        "time": f"{_format_hours(forecast.hours)} at {forecast.images_per_second:,.0f} images/s, "
        f"if {forecast.mfu:.0%} of the peak of {peak / 1e12:,.0f} TFLOP/s is reached (--mfu)",
        "checkpoints": f"{format_bytes(forecast.checkpoint_bytes)} each, "
        f"{config.checkpoint.keep_last} kept",
    }
    if forecast.num_shards:
        each = forecast.num_shards / gpus
        rows["shards"] = f"{forecast.num_shards:,}: {each:,.1f} for each GPU and epoch"
    device = f"{forecast.device.title} of {forecast.device.memory} GiB"
    title = f"{config.recipe} on {gpus} × {device}, {plan.precision}"
    return [title, "", *(f"{name:12} {text}" for name, text in rows.items())]


def memory_rows(forecast: Forecast) -> list[tuple[str, ...]]:
    """One row for each ZeRO stage: its parts and their sum in GiB, and whether it fits."""
    rows = []
    for stage, memory in forecast.memory.items():
        parts = (
            memory.weights + memory.gathered,
            memory.gradients,
            memory.optimizer,
            memory.teacher,
            memory.activations + memory.casts,
            memory.total,
        )
        chosen = " *" if stage == forecast.config.engine.zero_stage else ""
        fits = "yes" if memory.total <= forecast.usable_bytes else "no"
        rows.append((f"{stage}{chosen}", *(f"{part / GIB:.2f}" for part in parts), fits))
    return rows


def advise(forecast: Forecast) -> list[str]:
    """The lines below the table: what fits, and what to turn where it does not."""
    engine = forecast.config.engine
    chosen = forecast.memory[engine.zero_stage]
    room = forecast.usable_bytes
    lines = [
        f"* engine.zero_stage. Of the {forecast.images_per_gpu} images that a GPU has an update, "
        f"{forecast.largest_micro_batch} fit at once (engine.micro_batch_size=auto takes so many).",
        "total: at the end of a forward pass (activations) or in the update (gradients), whichever "
        "is more.",
    ]
    if not engine.activation_checkpointing:
        lines.append(
            f"With engine.activation_checkpointing=true: activations "
            f"{forecast.checkpointed.activations / GIB:.2f} GiB, total "
            f"{forecast.checkpointed.total / GIB:.2f} GiB, a third more to compute."
        )
    if chosen.total <= room:
        return lines
    remedies = [
        f"engine.zero_stage={stage}"
        for stage, memory in forecast.memory.items()
        if memory.total <= room
    ]
    if forecast.checkpointed.total <= room and not engine.activation_checkpointing:
        remedies.append("engine.activation_checkpointing=true")
    remedies.append("a smaller engine.micro_batch_size")
    return [
        f"DOES NOT FIT: {chosen.total / GIB:.1f} GiB at ZeRO-{engine.zero_stage}, of "
        f"{forecast.device.memory} GiB {room / GIB:.0f} are usable. "
        f"What helps: {'; '.join(remedies)}.",
        *lines,
    ]


def print_forecast(config: RunConfig, gpus: int, device: str, mfu: float, images: int) -> None:
    """Work it out and print it; arguments as in :func:`make_forecast`."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    forecast = make_forecast(config, gpus, device, mfu, images)
    console = Console(highlight=False)
    console.print("\n".join(describe(forecast)), markup=False, soft_wrap=True)
    console.print(
        f"\nMemory of one GPU in GiB, {forecast.usable_bytes / GIB:.0f} of "
        f"{forecast.device.memory} usable:"
    )
    table = Table(box=SIMPLE, pad_edge=False)
    heads = ("ZeRO", "weights", "gradients", "optimizer", "teacher", "activations", "total", "fits")
    for head in heads:
        table.add_column(head, justify="left" if head == "ZeRO" else "right")
    for row in memory_rows(forecast):
        table.add_row(*row)
    console.print(table)
    console.print("\n".join(advise(forecast)), markup=False, soft_wrap=True)


def _format_hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
