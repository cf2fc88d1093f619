"""What a run says to the person who started it, before and after it trains."""

import sys
from typing import TYPE_CHECKING

from ssl_vit.exports.folder import find_export
from ssl_vit.run.config import RunConfig
from ssl_vit.run.data import describe_set
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.length import Costs, Timed, steps_within

if TYPE_CHECKING:
    from ssl_vit.run.pretrain import Prepared

SMALL_DATA = "mae_small_data"
"""The recipe for small folders."""


def announce(prepared: "Prepared", start_step: int) -> None:
    """What will be trained, and how; before this start's plan takes the place of the last one's."""
    from ssl_vit.cost.counting import backbone_parameters

    plan, config = prepared.plan, prepared.config
    # Not of the module: at ZeRO-3 its parameters are elsewhere.
    size = backbone_parameters(config.backbone) / 1e6
    lines = [
        f"{config.recipe}: backbone {size:.1f} M parameters, {plan.num_samples:,} images, "
        f"{plan.total_steps:,} updates of {config.data.global_batch_size} "
        f"({plan.total_epochs:g} epochs)",
        f"{plan.device} × {plan.world_size}, ZeRO-{config.engine.zero_stage}, "
        f"{plan.precision}, {plan.accumulation} × {plan.micro_batch_size} images "
        f"a process, {plan.workers} data workers, peak learning rate {plan.peak_learning_rate:.3g}",
    ]
    if config.schedule.unit == "minutes" and start_step:
        lines.append(
            f"{plan.total_steps:,} steps, derived from {config.schedule.length:g} minutes at the "
            f"first start ({plan.measured_images_per_second:,.3g} images/s)"
        )
    if start_step:
        lines.append(f"resuming at update {start_step:,} from {prepared.folder.checkpoints}")
        before = prepared.folder.grouping()
        lines += regrouped(config, before, (plan.micro_batch_size, plan.world_size))
    if len(plan.sets) > 1:
        lines += [describe_set(each) for each in plan.sets]
    if config.data.global_batch_size > plan.samples_per_epoch:
        other = "" if config.recipe == SMALL_DATA else f"; for small folders there is {SMALL_DATA}"
        lines.append(
            f"note: one update takes {config.data.global_batch_size:,} images, more than an "
            f"epoch's {plan.samples_per_epoch:,}{other}"
        )
    if config.engine.tf32 and (plan.device == "cpu" or plan.precision != "float32"):
        lines.append(f"note: engine.tf32 does nothing on {plan.device} in {plan.precision}")
    shards_nothing = plan.world_size == 1 and config.engine.zero_stage in (1, 2)
    if plan.device == "cuda" and shards_nothing and not config.engine.offload_optimizer:
        lines.append("note: one process shards nothing; engine.zero_stage=0 is a few % faster")
    lines += prepared.notes
    lines += [f"changed since: {path} {change}" for path, change in prepared.changed.items()]
    print("\n".join(lines), file=sys.stderr, flush=True)


def regrouped(config: RunConfig, before: tuple[int, int], now: tuple[int, int]) -> list[str]:
    """A note where a run goes on in groups of images whose size is part of its result.

    Args:
        before, now: (images a micro-batch, processes).
    """
    configs = (config.objective, config.backbone)
    was, now_is = (
        {k: v for c in configs for k, v in c.grouped(*at).items()} for at in (before, now)
    )
    moved = [name for name, group in now_is.items() if was[name] != group]
    if not all(before) or not moved:
        return []
    then, this = (f"{count} × {micro}" for micro, count in (before, now))
    return [
        f"note: processes × images a micro-batch were {then} and are {this}, so these go on in "
        f"other groups, and losses differ from those of an unbroken run: {', '.join(moved)}"
    ]


def describe_measured(minutes: float, elapsed: float, timed: Timed, costs: Costs) -> list[str]:
    """What minutes came to, of which ``elapsed`` seconds are over."""

    def steps(count: int) -> str:
        return f"{count:,} step{'s' * (count != 1)}"

    lines = [
        f"{minutes:g} minutes: {steps(timed.total_steps)} at {timed.images_per_second:,.3g} "
        f"images/s measured over {steps(costs.num_measured)}"
    ]
    if steps_within(minutes, elapsed, costs) < timed.total_steps:
        lines.append(
            f"note: this run takes longer than {minutes:g} minutes: {elapsed:.0f} s are over, its "
            f"start and end take {costs.once:.0f} s more, and its only step {costs.update:.2g} s"
        )
    return lines


def say_end(folder: RunFolder, complete: bool) -> None:
    """Where the result is, or how to go on."""
    if complete:
        print(f"done: {find_export(folder.root)}")
        print(f"next: ssl-vit eval knn {folder.root} --train TRAIN_SHARDS --test TEST_SHARDS")
        print(f"      tensorboard --logdir {folder.tensorboard}")
    elif newest_checkpoint(folder.checkpoints) is None:
        print(f"stopped before the first step; the same command starts it: {folder.root}")
    else:
        print(f"stopped and saved; it goes on from here when it is started again: {folder.root}")
