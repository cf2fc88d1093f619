"""Composition root: from a command line to a finished run. Calls constructors, decides nothing.

`prepare` finds every mistake that can be found without torch; `start` imports the slow parts,
counts the cost of the network, and runs.
"""

import gc
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_vit.config import to_plain, to_yaml
from ssl_vit.data.access_plan import check_room
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.mixture import build_order
from ssl_vit.data.order import Order
from ssl_vit.data.shards import ShardSet
from ssl_vit.distributed import Processes, read_processes, set_library_environment
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import INFO_FILE
from ssl_vit.files import replacing
from ssl_vit.recipes import read_config
from ssl_vit.run.classes import settle_classes
from ssl_vit.run.config import RunConfig
from ssl_vit.run.data import data_facts, machine_lanes, open_data, open_labeled, sizes_of
from ssl_vit.run.environment import check_same_data, describe_data, record_start
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.given import settle_objective
from ssl_vit.run.head_start import find_head, take_head
from ssl_vit.run.machine import find_machine, plain_machine, require_compiler
from ssl_vit.run.messages import describe_measured, print_end, print_start
from ssl_vit.run.parts import open_log, open_trainer
from ssl_vit.run.start import check_resume_from, has_checkpoints, initial_objective
from ssl_vit.run.validation import ValidationImages, split_data
from ssl_vit.run.value_range import settle_values
from ssl_vit.training.checkpoint import newest_checkpoint, step_of
from ssl_vit.training.length import NOT_TIMED, Costs, Timed, slowest, steps_within
from ssl_vit.training.plan import (
    Machine,
    RunPlan,
    is_micro_batch_open,
    make_plan,
    with_length,
    with_micro_batch,
)

if TYPE_CHECKING:
    from ssl_vit.objectives.objective import HeadStart
    from ssl_vit.training.preemption import Preemption

# A length that no rehearsal reaches, for schedules that depend on one.
_REHEARSED_STEPS = 1_000_000


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: everything was checked, nothing was written."""

    config: RunConfig
    plan: RunPlan
    folder: RunFolder
    shards: ShardSet | None
    """None if the samples are synthetic."""
    labeled: ShardSet | None
    """Shards for online probes; None if there are none."""
    validation: ValidationImages | None
    """Images that an objective with labels is validated on; None if there are none."""
    order: Order
    cache: ShardCache
    processes: Processes
    machine: Machine
    changed: dict[str, str]
    """Settings a resumed run changes: path → "old → new"."""
    notes: tuple[str, ...] = ()
    """Messages about the data."""
    began: float = field(default_factory=time.monotonic)
    """Value of ``time.monotonic`` from which the minutes of a run's length are counted."""


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
        processes: The processes of the run, for a launcher; by default those of this process.

    Raises:
        UserError: The command line, the config, the shard set or the run folder has a mistake.
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
    config, class_notes = settle_classes(config, shards)
    shards, validation, split_notes = split_data(config, shards, cache)
    facts = data_facts(shards)
    config, more_notes = settle_objective(config, facts.num_samples, folder)
    notes += (*more_notes, *class_notes, *split_notes)
    changed = folder.check(config)
    labeled = open_labeled(config, cache)
    check_same_data(folder.environment, describe_data(shards))
    order = build_order(sizes_of(shards), config.data, config.seed)
    everyone = processes or read_processes()
    if config.resume_from and not has_checkpoints(folder):
        check_resume_from(config)
    timed = _timed_before(config, folder)
    machine = plain_machine(everyone)
    plan = make_plan(config, machine, facts, timed=timed)
    if processes is None:
        # Last, because looking for a GPU may import torch; and only on the machine of the run.
        machine = find_machine(config.engine.device, everyone)
        plan = make_plan(config, machine, facts, folder.found_micro_batch(), timed)
        if config.engine.compile is True:
            require_compiler()
    if shards:
        here = machine_lanes(config.data.lanes, everyone)
        check_room(shards.shards, order.shards_at(0, here), cache.num_bytes)
    if processes is None and is_micro_batch_open(plan, config):
        # This imports torch. Not later, because possibly none fits.
        set_library_environment(plan.device)
        from ssl_vit.run.counted import counted

        plan = counted(plan, config, machine)
    return Prepared(
        *(config, plan, folder, shards, labeled, validation, order, cache, everyone, machine),
        *(changed, notes),
    )


def _timed_before(config: RunConfig, folder: RunFolder) -> Timed:
    """The number of steps derived from minutes at the run's first start.

    Raises:
        UserError: The run has trained, and that number is lost.
    """
    if config.schedule.unit != "minutes":
        return NOT_TIMED
    timed = Timed(*folder.derived_length())
    if not timed.total_steps and has_checkpoints(folder):
        raise UserError(
            f"{folder.root} has checkpoints, but {folder.plan} is missing or damaged, so the "
            f"number of steps derived from {config.schedule.length:g} minutes is lost",
            f"restore plan.json, or start a new run with resume_from={folder.root}",
        )
    return timed


def start(prepared: Prepared, profile: bool = False) -> int:
    """Run to the end or until a signal asks to stop; returns the process's exit code.

    Args:
        prepared: The checked run.
        profile: Whether the first rank records a few steps with torch's profiler.
    """
    from ssl_vit.training.preemption import EXIT_SAVED, Preemption

    processes, folder = prepared.processes, prepared.folder
    if is_complete(folder, prepared.plan.total_steps):
        if processes.is_first:
            print_end(folder, complete=True)
            if profile:
                print("no profile: the run is already complete", file=sys.stderr)
        return 0
    if processes.is_first:
        folder.lock()
    set_library_environment(prepared.plan.device)
    with Preemption(processes.is_first) as preemption:  # from here on no signal is lost
        complete = _train(prepared, preemption, profile)
        if processes.is_first:
            print_end(folder, complete)
        if not complete:
            # Last, after every rank has left the process group: from here on the scheduler may
            # requeue the job and end this process.
            preemption.hand_back()
    return 0 if complete else EXIT_SAVED


def _train(prepared: Prepared, preemption: "Preemption", profile: bool) -> bool:
    """Train; returns whether the run is complete, False if it was stopped and saved."""
    import torch

    from ssl_vit.run.counted import counted
    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.engine import Engine
    from ssl_vit.training.profile import StepProfile
    from ssl_vit.training.zero import start_process_group

    config, folder, processes = prepared.config, prepared.folder, prepared.processes
    torch.set_num_threads(prepared.plan.threads)
    if not prepared.plan.trained_parameters:
        prepared = replace(prepared, plan=counted(prepared.plan, config, prepared.machine))
    start_process_group(prepared.plan.device, processes)
    prepared = _with_consensus(prepared)
    head = None
    if not prepared.plan.total_steps:
        rehearsed = _rehearse(prepared, preemption)
        if rehearsed is None:
            torch.distributed.destroy_process_group()
            return False
        costs, head = rehearsed
        prepared = _with_length(prepared, costs)
    plan = prepared.plan
    objective = initial_objective(config, folder, processes, plan.total_steps)
    take_head(objective, head or find_head(objective, prepared, torch.device(plan.device)))
    engine = Engine(objective, config.optimizer, config.engine, plan, processes, config.seed)
    checkpoints = Checkpoints(folder.checkpoints, engine, config.checkpoint)
    start_step = checkpoints.restore()
    log = None
    if processes.is_first:
        print_start(prepared, start_step)
        _write_run_folder(prepared, start_step)
        log = open_log(prepared, start_step, engine.device)
    profiler = None
    if profile and processes.is_first:
        profiler = StepProfile(folder.profile, start_step, engine.device)
    trainer = open_trainer(
        prepared, objective, engine, checkpoints, start_step, preemption, log, profiler
    )
    # Libraries and modules, 400,000 objects, stay: looking through them now and then stops a step
    # for half a second.
    gc.collect()
    gc.freeze()
    try:
        complete = trainer.run(start_step, plan.total_steps)
    finally:
        trainer.close()
    engine.close()
    return complete


def _rehearse(
    prepared: Prepared, preemption: "Preemption"
) -> tuple[Costs, "HeadStart | None"] | None:
    """What a run costs on this machine, measured over a few steps of a network that is then
    discarded, and the head that was fitted first, which takes a part of the run's minutes; None if
    a signal asked to stop.
    """
    import torch

    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.consensus import gather
    from ssl_vit.training.engine import Engine

    config, processes, began = prepared.config, prepared.processes, time.perf_counter()
    minutes = config.schedule.length
    if processes.is_first:
        # From here on it is a run folder, even if the run ends now.
        prepared.folder.write_config(config)
        print(f"measuring how many steps fit into {minutes:g} minutes", file=sys.stderr, flush=True)
    plan = with_length(prepared.plan, config, Timed(_REHEARSED_STEPS))
    place = RunFolder(prepared.folder.rehearsal)
    objective = initial_objective(config, prepared.folder, processes, plan.total_steps)
    head = find_head(objective, prepared, torch.device(plan.device))
    engine = Engine(objective, config.optimizer, config.engine, plan, processes, config.seed)
    checkpoints = Checkpoints(place.checkpoints, engine, config.checkpoint)
    trial = replace(prepared, plan=plan, folder=place)
    trainer = open_trainer(trial, objective, engine, checkpoints, 0, preemption)
    try:
        mine = trainer.rehearse(minutes, began)
    finally:
        trainer.close()
    engine.release()
    if processes.is_first:
        shutil.rmtree(place.root, ignore_errors=True)
    return None if mine is None else (slowest(gather(mine, processes)), head)


def _with_length(prepared: Prepared, costs: Costs) -> Prepared:
    """The run with as many steps as fit into its minutes; the same on every rank."""
    from ssl_vit.training.consensus import gather
    from ssl_vit.training.zero import free_memory

    config, processes = prepared.config, prepared.processes
    free_memory(prepared.plan.device)
    elapsed = max(gather(time.monotonic() - prepared.began, processes))
    minutes = config.schedule.length
    steps = max(1, steps_within(minutes, elapsed, costs))
    timed = Timed(steps, config.data.global_batch_size / costs.update)
    if processes.is_first:
        lines = describe_measured(minutes, elapsed, timed, costs)
        print("\n".join(lines), file=sys.stderr, flush=True)
    return replace(prepared, plan=with_length(prepared.plan, config, timed))


def _with_consensus(prepared: Prepared) -> Prepared:
    """The run that all ranks agree on.

    Raises:
        UserError: The ranks were started with different code, configs or data.
    """
    import ssl_vit
    from ssl_vit.training.consensus import gather, refuse_disagreement

    facts = {
        "version of ssl-vit": ssl_vit.__version__,
        "config": to_yaml(prepared.config),
        "data": prepared.plan.data_fingerprint,
        "precision (engine.precision=auto differs from machine to machine)": (
            prepared.plan.precision
        ),
        "number of steps": str(prepared.plan.total_steps),
    }
    refuse_disagreement(facts, prepared.processes)
    # What fits may differ from machine to machine; all ranks take the same micro-batch size.
    smallest = min(gather(prepared.plan.micro_batch_size, prepared.processes))
    plan = with_micro_batch(prepared.plan, smallest, prepared.config)
    return replace(prepared, plan=plan)


def is_complete(folder: RunFolder, total_steps: int) -> bool:
    """Whether the run is complete: its last checkpoint and export exist.

    Args:
        total_steps: Length of the run, if validation does not end it before; 0 if not known yet.
    """
    total_steps = folder.ended_step() or total_steps
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None or not total_steps or step_of(newest) < total_steps:
        return False
    return (folder.exports / newest.name / INFO_FILE).is_file()


def _write_run_folder(prepared: Prepared, start_step: int) -> None:
    folder, data = prepared.folder, describe_data(prepared.shards)
    folder.write_config(prepared.config)
    with replacing(folder.plan) as partial:
        partial.write_text(json.dumps(to_plain(prepared.plan), indent=1) + "\n")
    record_start(folder.environment, data, prepared.plan.world_size, start_step)
