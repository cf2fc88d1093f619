"""What a run prints for the person who started it, before and after training."""

import sys
from typing import TYPE_CHECKING

from ssl_vit.exports.folder import CLASSIFIER_INFO, TOKENIZER_INFO, find_export
from ssl_vit.run.config import RunConfig
from ssl_vit.run.data import describe_set
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.length import Costs, Timed, steps_within

if TYPE_CHECKING:
    from ssl_vit.run.pretrain import Prepared

SMALL_DATA = "mae_small_data"
"""The recipe for small folders."""


def print_start(prepared: "Prepared", start_step: int) -> None:
    """Print what will be trained and how; called before this start's plan replaces the last one."""
    from ssl_vit.cost.counting import backbone_parameters

    plan, config = prepared.plan, prepared.config
    # Not counted in the module: at ZeRO-3 its parameters are elsewhere.
    size = backbone_parameters(config.backbone) / 1e6
    lines = [
        f"{config.recipe}: backbone {size:.1f} M parameters, {plan.num_samples:,} images, "
        f"{_steps(plan.total_steps)} with batch size {config.data.global_batch_size:,} "
        f"({plan.total_epochs:g} epochs)",
        f"{plan.device} × {plan.world_size}, ZeRO-{config.engine.stage_of(plan.world_size)}, "
        f"{plan.precision}, {plan.accumulation} × {plan.micro_batch_size} images per process, "
        f"{plan.workers} data worker{'s' * (plan.workers != 1)} per process, "
        f"peak learning rate {plan.peak_learning_rate:.3g}",
    ]
    if config.schedule.unit == "minutes" and start_step:
        lines.append(
            f"{_steps(plan.total_steps)}, derived from {config.schedule.length:g} minutes at the "
            f"first start ({plan.measured_images_per_second:,.3g} images/s)"
        )
    if start_step:
        lines.append(f"resuming at step {start_step:,} from {prepared.folder.checkpoints}")
        before = prepared.folder.grouping()
        lines += grouping_notes(config, before, (plan.micro_batch_size, plan.world_size))
    if len(plan.sets) > 1:
        lines += [describe_set(each) for each in plan.sets]
    if config.data.global_batch_size > plan.samples_per_epoch:
        other = "" if config.recipe == SMALL_DATA else f"; for small data sets, use {SMALL_DATA}"
        lines.append(
            f"note: a batch of {config.data.global_batch_size:,} images is larger than an epoch "
            f"of {plan.samples_per_epoch:,}{other}"
        )
    if config.engine.tf32 and (plan.device == "cpu" or plan.precision != "float32"):
        lines.append(f"note: engine.tf32 has no effect on {plan.device} in {plan.precision}")
    lines += prepared.notes
    lines += [f"changed: {path} {change}" for path, change in prepared.changed.items()]
    print("\n".join(lines), file=sys.stderr, flush=True)


def grouping_notes(config: RunConfig, before: tuple[int, int], now: tuple[int, int]) -> list[str]:
    """A note if a run continues with groups of images of another size, which affects its result.

    Args:
        before, now: (images per micro-batch, processes).
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
        f"note: processes × images per micro-batch changed from {then} to {this}; losses differ "
        f"from those of an uninterrupted run, because these depend on it: {', '.join(moved)}"
    ]


def describe_measured(minutes: float, elapsed: float, timed: Timed, costs: Costs) -> list[str]:
    """The number of steps derived from minutes, of which ``elapsed`` seconds have passed."""
    lines = [
        f"{minutes:g} minutes: {_steps(timed.total_steps)} at {timed.images_per_second:,.3g} "
        f"images/s measured over {_steps(costs.num_measured)}"
    ]
    if steps_within(minutes, elapsed, costs) < timed.total_steps:
        lines.append(
            f"note: this run takes longer than {minutes:g} minutes: {elapsed:.0f} s have passed, "
            f"startup and shutdown take {costs.once:.0f} s more, and its only step takes "
            f"{costs.update:.2g} s"
        )
    return lines


def print_end(folder: RunFolder, complete: bool) -> None:
    """Print where the result is, or how to continue."""
    if complete:
        export = find_export(folder.root)
        print(f"done: {export}")
        if (export / TOKENIZER_INFO).is_file():
            print(
                "next: ssl-vit pretrain beit_small_data --run BEIT data.shards=SHARDS "
                f"objective.tokenizer={folder.root}"
            )
        if (export / CLASSIFIER_INFO).is_file():
            print(f"next: ssl-vit eval classifier {folder.root} --test TEST_SHARDS")
            print(f"next: ssl-vit predict {folder.root} IMAGES --out CLASSES.csv")
        else:
            print(f"next: ssl-vit eval knn {folder.root} --train TRAIN_SHARDS --test TEST_SHARDS")
        print(f"      tensorboard --logdir {folder.tensorboard}")
    elif newest_checkpoint(folder.checkpoints) is None:
        print(f"stopped before the first step; run the same command to start: {folder.root}")
    else:
        print(f"stopped and saved; run the same command again to resume: {folder.root}")


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count != 1)}"
