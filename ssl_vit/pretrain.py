"""Composition root: from what was said to a finished run. Calls constructors, decides nothing.

`prepare` finds every mistake that can be found without torch; `start` imports the slow part and
runs.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.announce import announce, say_end
from ssl_vit.config import to_plain, to_yaml
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.keeper import Keeper
from ssl_vit.data.mixture import build_order
from ssl_vit.data.needs import TrainingNeeds, check_room
from ssl_vit.data.order import Order, lanes_of_rank
from ssl_vit.data.shards import ShardSet
from ssl_vit.distributed import Processes, read_processes, set_library_environment
from ssl_vit.environment import check_same_data, describe_data, record_start
from ssl_vit.errors import UserError
from ssl_vit.export import INFO_FILE
from ssl_vit.files import replacing
from ssl_vit.machine import find_machine, plain_machine, require_compiler
from ssl_vit.recipes import read_config
from ssl_vit.run_config import RunConfig
from ssl_vit.run_data import data_facts, machine_lanes, open_data, open_labelled, sizes_of
from ssl_vit.run_folder import RunFolder
from ssl_vit.run_values import settle_values
from ssl_vit.start_from import check_beginning, has_begun, initial_objective
from ssl_vit.training.checkpoint import newest_checkpoint, step_of
from ssl_vit.training.plan import RunPlan, make_plan, with_micro_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ssl_vit.data.loader import Batches
    from ssl_vit.monitors.probes import Probe
    from ssl_vit.objectives.objective import Objective
    from ssl_vit.training.preemption import Preemption
    from ssl_vit.training.trainer import Exports, Log


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: everything was checked, nothing was written."""

    config: RunConfig
    plan: RunPlan
    folder: RunFolder
    shards: ShardSet | None
    """None where the samples are synthetic."""
    labelled: ShardSet | None
    """For online probes, where they are wanted."""
    order: Order
    cache: ShardCache
    processes: Processes
    changed: dict[str, str]
    """Settings a resumed run changes: path → "old → new"."""
    notes: tuple[str, ...] = ()
    """What must be said of the data."""


def prepare(
    recipe: str,
    run: Path,
    overrides: Sequence[str],
    is_smoke: bool,
    processes: Processes | None = None,
) -> Prepared:
    """Check everything that can be checked without torch.

    Args:
        recipe: A recipe's name or a `config.yaml`.
        run: The run folder.
        overrides: `path=value` words.
        is_smoke: Whether to shrink the recipe.
        processes: Whose run is checked, for a launcher; by default this process's own.

    Raises:
        UserError: For each mistake a user can make in a command line, a config, a shard set or a
            run folder.
    """
    config = read_config(recipe, overrides, is_smoke)
    if config.data.source == "shards" and not config.data.sources:
        raise UserError(
            "data.shards is not given", "add  data.shards=FOLDER  (made by `ssl-vit shards pack`)"
        )
    folder = RunFolder(run)
    folder.check_ours()
    cache, shards = open_data(config)
    config, notes = settle_values(config, shards, folder)
    changed = folder.check(config)
    labelled = open_labelled(config, cache)
    check_same_data(folder.environment, describe_data(shards))
    order = build_order(sizes_of(shards), config.data, config.seed)
    everyone = processes or read_processes()
    if config.resume_from and not has_begun(folder):
        check_beginning(config)
    facts = data_facts(shards)
    plan = make_plan(config, plain_machine(everyone), facts)
    if processes is None:
        # Last, because asking for a GPU may import torch; and only where the run will be.
        machine = find_machine(config.engine.device, everyone)
        plan = make_plan(config, machine, facts, folder.found_micro_batch())
        if config.engine.compile:
            require_compiler()
    if shards:
        here = machine_lanes(config.data.lanes, everyone)
        check_room(shards.shards, order.shards_at(0, here), cache.num_bytes)
    return Prepared(config, plan, folder, shards, labelled, order, cache, everyone, changed, notes)


def start(prepared: Prepared, profile: bool = False) -> int:
    """Run to the end, or until asked to stop; returns the process's exit code.

    Args:
        prepared: What was checked.
        profile: Whether the first rank records a few updates with torch's profiler.
    """
    from ssl_vit.training.preemption import EXIT_SAVED, Preemption

    processes, folder = prepared.processes, prepared.folder
    if is_complete(folder, prepared.plan.total_steps):
        if processes.is_first:
            say_end(folder, complete=True)
            if profile:
                print("no profile: nothing is left to train", file=sys.stderr)
        return 0
    if processes.is_first:
        folder.lock()
    set_library_environment(prepared.plan.device)
    with Preemption(processes.is_first) as preemption:  # from here on a signal is not lost
        complete = _train(prepared, preemption, profile)
        if processes.is_first:
            say_end(folder, complete)
        if not complete:
            # Last, when every rank has left the process group: now the scheduler may requeue, and
            # end us.
            preemption.hand_back()
    return 0 if complete else EXIT_SAVED


def _train(prepared: Prepared, preemption: "Preemption", profile: bool) -> bool:
    """Whether the run is complete, or was asked to stop and has saved."""
    import torch

    from ssl_vit.training.bad_samples import BadSamples
    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.engine import Engine, start_process_group
    from ssl_vit.training.guards import HangDetector, NonfiniteUpdates
    from ssl_vit.training.profile import StepProfile
    from ssl_vit.training.trainer import Trainer

    config, folder, processes = prepared.config, prepared.folder, prepared.processes
    torch.set_num_threads(prepared.plan.threads)
    start_process_group(prepared.plan.device, processes)
    plan = (prepared := _agreed(prepared)).plan
    objective = initial_objective(config, folder, processes, plan.total_steps)
    engine = Engine(objective, config.optimizer, config.engine, plan, processes, config.seed)
    checkpoints = Checkpoints(folder.checkpoints, engine, config.checkpoint)
    start_step = checkpoints.restore()
    exports = _open_exports(prepared, objective)
    log = None
    if processes.is_first:
        announce(prepared, start_step)
        _write_run_folder(prepared, start_step)
        log = _open_log(prepared, start_step, engine.device)
    batches = _open_batches(prepared, start_step)
    bad = BadSamples(folder.bad_samples, start_step, config.data, processes.is_first)
    nonfinite = NonfiniteUpdates(
        folder.nonfinite, start_step, config.guard, processes.is_first, _namer(prepared)
    )
    hangs = HangDetector(folder.hangs, processes.rank, config.guard.hang_minutes)
    profiler = None
    if profile and processes.is_first:
        profiler = StepProfile(folder.profile, start_step, engine.device)
    trainer = Trainer(
        objective,
        engine,
        batches,
        bad,
        nonfinite,
        hangs,
        checkpoints,
        exports,
        log,
        config.log,
        preemption,
        _open_probe(prepared),
        profiler,
    )
    try:
        complete = trainer.run(start_step, plan.total_steps)
    finally:
        hangs.close()
        batches.close()
        if profiler is not None:
            profiler.close()
        if log is not None:
            log.close()
    engine.close()
    return complete


def _agreed(prepared: Prepared) -> Prepared:
    """What all ranks agree on; those that were started otherwise refuse."""
    import ssl_vit
    from ssl_vit.training.agreement import gather, refuse_disagreement

    facts = {
        "version of ssl-vit": ssl_vit.__version__,
        "config": to_yaml(prepared.config),
        "data": prepared.plan.data_fingerprint,
        "precision (engine.precision=auto differs from machine to machine)": (
            prepared.plan.precision
        ),
        "number of updates": str(prepared.plan.total_steps),
    }
    refuse_disagreement(facts, prepared.processes)
    # What fits may differ from machine to machine; all ranks take as many micro-batches.
    smallest = min(gather(prepared.plan.micro_batch_size, prepared.processes))
    plan = with_micro_batch(prepared.plan, smallest, prepared.config)
    return replace(prepared, plan=plan)


def _namer(prepared: Prepared) -> "Callable[[Sequence[int]], list[str]]":
    shards = prepared.shards
    if shards is None:
        return lambda numbers: [f"number {number}" for number in numbers]
    return lambda numbers: [shards.key(number) for number in numbers]


def _open_batches(prepared: Prepared, start_step: int) -> "Batches":
    from ssl_vit.data.dataset import TrainingBatches
    from ssl_vit.data.loader import LoadedBatches, LoaderSettings, UpdateSampler, build_loader
    from ssl_vit.data.synthetic import SyntheticBatches
    from ssl_vit.objectives.build import build_views
    from ssl_vit.training.preemption import outlive_signals_in_worker

    config, plan, processes = prepared.config, prepared.plan, prepared.processes
    views = build_views(config.objective, config.backbone)
    lanes = lanes_of_rank(config.data.lanes, processes.rank, processes.world_size)
    sampler = UpdateSampler(
        prepared.order, lanes, plan.micro_batch_size, start_step, plan.total_steps
    )
    if prepared.shards is None:
        return SyntheticBatches(views, iter(sampler), config.seed)
    keeper = Keeper(
        prepared.shards.shards,
        prepared.cache,
        TrainingNeeds(prepared.order, lanes, plan.total_steps),
        start_step,
        config.engine.verify_shards,
        (processes.local_rank, processes.local_world_size),
    )
    settings = LoaderSettings(
        plan.workers, plan.prefetch, plan.pin_memory, outlive_signals_in_worker
    )
    maker = TrainingBatches(prepared.shards, views, config.seed, config.data.values)
    loader = build_loader(maker, sampler, plan.micro_batch_size, settings)
    return LoadedBatches(loader, keeper, lambda batch: start_step + batch // plan.accumulation)


def _open_probe(prepared: Prepared) -> "Probe | None":
    from ssl_vit.monitors.probes import Probe

    if prepared.labelled is None:
        return None
    config, processes = prepared.config, prepared.processes
    return Probe(
        prepared.labelled,
        config.monitor,
        config.backbone.image_size,
        processes.rank,
        processes.world_size,
        config.data.values,
    )


def _open_exports(prepared: Prepared, objective: "Objective") -> "Exports":
    from ssl_vit.export import ExportInfo, RunExports

    config = prepared.config
    info = ExportInfo.of_run(config, prepared.plan.data_fingerprint)
    folder, every = prepared.folder.exports, config.export.every_steps
    return RunExports(folder, objective, info, every, prepared.processes.is_first)


def _open_log(prepared: Prepared, start_step: int, device: "torch.device") -> "Log":
    from ssl_vit.monitors.collapse import CollapseWatch
    from ssl_vit.monitors.monitor import Monitor
    from ssl_vit.training.alarms import AlarmFile
    from ssl_vit.training.measures import peak_flops
    from ssl_vit.training.metrics import MetricsLog
    from ssl_vit.training.metrics_file import lines_with
    from ssl_vit.training.progress import ProgressLine
    from ssl_vit.training.trainer import Log

    config, plan, folder = prepared.config, prepared.plan, prepared.folder
    metrics = MetricsLog(
        folder.metrics,
        folder.tensorboard,
        start_step,
        config.log.every_steps,
        config.data.global_batch_size,
        plan,
        peak_flops(device, plan.precision, config.engine.tf32),
    )
    metrics.text("config", to_yaml(config))
    batch = config.data.global_batch_size
    watch = CollapseWatch(config.objective, plan.warmup_steps)
    watch.recall(lines_with(folder.metrics, "monitor/spread"))
    return Log(
        metrics,
        ProgressLine(start_step, plan.total_steps, batch),
        Monitor(config.monitor, watch),
        AlarmFile(folder.alarms, start_step),
        folder.panels,
    )


def is_complete(folder: RunFolder, total_steps: int) -> bool:
    """Whether nothing is left to train: the last checkpoint and its export are there."""
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None or step_of(newest) < total_steps:
        return False
    return (folder.exports / newest.name / INFO_FILE).is_file()


def _write_run_folder(prepared: Prepared, start_step: int) -> None:
    folder, data = prepared.folder, describe_data(prepared.shards)
    folder.write_config(prepared.config)
    with replacing(folder.plan) as partial:
        partial.write_text(json.dumps(to_plain(prepared.plan), indent=1) + "\n")
    record_start(folder.environment, data, prepared.plan.world_size, start_step)
