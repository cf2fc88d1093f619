"""What `ssl-vit plan` prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_vit.cost.devices import GIB
from ssl_vit.cost.disk import disk_of
from ssl_vit.cost.estimate import IMAGENET, Estimate, make_estimate
from ssl_vit.cost.memory import USABLE
from ssl_vit.cost.network import FLOAT32
from ssl_vit.cost.traffic import GPUS_PER_MACHINE, REACHED
from ssl_vit.run.config import RunConfig
from ssl_vit.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

# Usual sizes of photographs and shards: ImageNet-1k's mean, and the default of `pack`.
_IMAGE_BYTES, _SHARD_BYTES = 110_000, 268_435_456
_MUCH_WAITING = 0.1  # of a step


def describe(estimate: Estimate) -> list[str]:
    """The lines above the memory table."""
    config, plan, cost = estimate.config, estimate.plan, estimate.cost
    own = cost.trained - cost.backbone
    teacher = f", and a teacher with {cost.frozen:,}" if cost.frozen else ""
    batch, gpus = config.data.global_batch_size, plan.world_size
    peak = estimate.device.peak_flops(plan.precision, config.engine.tf32)
    epoch = f"{plan.total_epochs:g} epochs of {plan.samples_per_epoch:,} images"
    if plan.data_fingerprint == "assumed":
        assumed = "as in ImageNet-1k" if plan.num_samples == IMAGENET else "as given by --images"
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
        f"assuming {estimate.mfu:.0%} of the peak of {peak / 1e12:,.0f} TFLOP/s (--mfu)"
        f"{', the waiting below,' if gpus > 1 else ''} and no other bottleneck",
        "cores": _describe_cores(estimate),
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


def _describe_cores(estimate: Estimate) -> str:
    feeding = estimate.feeding
    whence = "assuming JPEGs of 500 × 375 pixels; to measure yours, set data.shards=SHARDS"
    if feeding.num_measured:
        whence = f"measured on {feeding.num_measured} of your images, on this machine"
    return (
        f"about {estimate.cores:,.1f} of each machine's prepare images at that rate, "
        f"{feeding.images_per_second:,.0f} images/s each ({whence})"
    )


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


def traffic_rows(estimate: Estimate) -> list[tuple[str, ...]]:
    """One row per ZeRO stage: GB that a GPU sends in a step while it computes and while it waits,
    how long it waits, and the images/s that follow.
    """
    rows = []
    for stage, traffic in estimate.traffic.items():
        chosen = " *" if stage == estimate.config.engine.zero_stage else ""
        if traffic is None:
            rows.append((f"{stage}{chosen}", *[""] * 3, "n/a"))
            continue
        waiting = estimate.waiting_seconds(stage)
        rate = estimate.rate_at(stage)
        sent = (f"{part / 1e9:.2f}" for part in (traffic.hidden, traffic.exposed))
        rows.append((f"{stage}{chosen}", *sent, f"{1e3 * waiting:,.1f}", f"{rate:,.0f}"))
    return rows


def _describe_traffic(estimate: Estimate) -> str:
    """The line above the table of the traffic."""
    to = (
        "others of its machine"
        if estimate.plan.world_size <= GPUS_PER_MACHINE
        else (f"other machines (--network; {GPUS_PER_MACHINE} GPUs each)")
    )
    return (
        f"Communication per GPU and step, beside {1e3 * estimate.compute_seconds:,.0f} ms of "
        f"computation, assuming {REACHED:.0%} of {estimate.sends:g} GB/s to {to}:"
    )


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
        "memory in total: weights, optimizer and teacher, plus the larger of activations (at the "
        "end of a forward pass, with earlier gradients) and gradients (in the optimizer step).",
    ]
    if not engine.activation_checkpointing:
        lines.append(
            f"With engine.activation_checkpointing=true: activations "
            f"{estimate.checkpointed.forward / GIB:.2f} GiB, total "
            f"{estimate.checkpointed.total / GIB:.2f} GiB, a third more computation."
        )
    lines += _advise_on_waiting(estimate)
    if estimate.fits:
        return lines
    remedies = "; or ".join(estimate.remedies) or "more GPUs, or GPUs with more memory"
    return [
        f"Does not fit: needs {chosen.total / GIB:.1f} GiB per GPU at ZeRO-{engine.zero_stage}, "
        f"{room / GIB:.0f} of {estimate.device.memory_gib} GiB usable. Try: {remedies}.",
        *lines,
    ]


def _advise_on_waiting(estimate: Estimate) -> list[str]:
    """What to change if GPUs wait for communication much of the time."""
    stage = estimate.config.engine.zero_stage
    share = estimate.waiting_share(stage)
    if share < _MUCH_WAITING:
        return []
    size = estimate.device.memory_bytes
    best = stage
    for each, memory in estimate.memory.items():
        fits = memory is not None and memory.fits(size)
        if fits and estimate.waiting_share(each) < estimate.waiting_share(best):
            best = each
    other = ""
    if best != stage:
        other = f" engine.zero_stage={best} ({estimate.waiting_share(best):.0%}), or"
    return [
        f"GPUs wait {share:.0%} of the time. Less with{other} more images per GPU and step: fewer "
        "GPUs, or a larger data.global_batch_size."
    ]


def print_estimate(
    config: RunConfig, gpus: int, device: str, mfu: float, images: int, network: float
) -> bool:
    """Estimate the cost of a run and print it; arguments as in :func:`make_estimate`.

    Returns:
        Whether the run fits.
    """
    from rich.console import Console

    estimate = make_estimate(config, gpus, device, mfu, images, network)
    console = Console(highlight=False, width=max(80, Console().width))
    console.print("\n".join(describe(estimate)), markup=False, soft_wrap=True)
    console.print(
        f"\nMemory per GPU in GiB, {estimate.usable_bytes / GIB:.0f} of "
        f"{estimate.device.memory_gib} usable ({USABLE:.0%}):"
    )
    heads = ("weights", "gradients", "optimizer", "teacher", "activations", "total", "fits")
    console.print(_table(heads, memory_rows(estimate)))
    if gpus > 1:
        console.print(_describe_traffic(estimate), markup=False, soft_wrap=True)
        heads = ("GB computing", "GB waiting", "ms waiting", "images/s")
        console.print(_table(heads, traffic_rows(estimate)))
    console.print("\n".join(advise(estimate)), markup=False, soft_wrap=True)
    return estimate.fits


def _table(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> "Table":
    """Rows that begin with a ZeRO stage, under these heads."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("ZeRO")
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


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
