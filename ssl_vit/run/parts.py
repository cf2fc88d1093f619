"""The parts of a checked run: each function calls the constructors of one of them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssl_vit.config import to_yaml
from ssl_vit.data.access_plan import TrainingAccess
from ssl_vit.data.order import lanes_of_rank
from ssl_vit.data.prefetcher import ShardPrefetcher
from ssl_vit.errors import UserError
from ssl_vit.files import OptionalWrites

if TYPE_CHECKING:
    import torch

    from ssl_vit.data.batches import Batches
    from ssl_vit.exports.folder import RunExports
    from ssl_vit.monitors.probes import Probe
    from ssl_vit.monitors.validation import Validation
    from ssl_vit.objectives.objective import Objective
    from ssl_vit.run.pretrain import Prepared
    from ssl_vit.training.checkpoint import Checkpoints
    from ssl_vit.training.engine import Engine
    from ssl_vit.training.log import Log
    from ssl_vit.training.preemption import Preemption
    from ssl_vit.training.profile import StepProfile
    from ssl_vit.training.trainer import Trainer


def open_trainer(
    prepared: "Prepared",
    objective: "Objective",
    engine: "Engine",
    checkpoints: "Checkpoints",
    start_step: int,
    preemption: "Preemption",
    log: "Log | None" = None,
    profile: "StepProfile | None" = None,
) -> "Trainer":
    """The trainer with all its parts, data workers started; `Trainer.close` ends them."""
    from ssl_vit.training.guards import BadSamples, HangDetector, NonfiniteUpdates
    from ssl_vit.training.metrics_file import AppendedLines
    from ssl_vit.training.trainer import Trainer

    config, folder, processes = prepared.config, prepared.folder, prepared.processes
    batches = open_batches(prepared, start_step)
    bad_samples = AppendedLines(folder.bad_samples, start_step, processes.is_first)
    nonfinite = AppendedLines(folder.nonfinite, start_step, processes.is_first)
    return Trainer(
        objective=objective,
        engine=engine,
        batches=batches,
        bad_samples=BadSamples(bad_samples, start_step, config.data),
        nonfinite=NonfiniteUpdates(nonfinite, config.guard, namer(prepared)),
        hangs=HangDetector(folder.hangs, processes.rank, config.guard.hang_minutes),
        checkpoints=checkpoints,
        exports=open_exports(prepared, objective),
        log_config=config.log,
        preemption=preemption,
        log=log,
        probe=open_probe(prepared),
        validation=open_validation(prepared, start_step),
        validations=AppendedLines(folder.validations, start_step, processes.is_first),
        ended=folder.ended,
        profile=profile,
    )


def namer(prepared: "Prepared") -> Callable[[Sequence[int]], list[str]]:
    """Sample numbers → their keys."""
    shards = prepared.shards
    if shards is None:
        return lambda numbers: [f"number {number}" for number in numbers]
    return lambda numbers: [shards.key(number) for number in numbers]


def open_batches(prepared: "Prepared", start_step: int) -> "Batches":
    """This rank's micro-batches, beginning with step ``start_step``."""
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
    prefetcher = ShardPrefetcher(
        prepared.shards.shards,
        prepared.cache,
        TrainingAccess(prepared.order, lanes, plan.total_steps),
        start_step,
        config.engine.verify_shards,
        (processes.local_rank, processes.local_world_size),
    )
    settings = LoaderSettings(
        plan.workers, plan.prefetch, plan.pin_memory, outlive_signals_in_worker
    )
    maker = TrainingBatches(prepared.shards, views, config.seed, config.data.values)
    loader = build_loader(maker, sampler, plan.micro_batch_size, settings)
    return LoadedBatches(loader, prefetcher, lambda batch: start_step + batch // plan.accumulation)


def open_probe(prepared: "Prepared") -> "Probe | None":
    """The online probe of this rank's share of the labeled images; None if there are none."""
    from ssl_vit.monitors.labeled_images import read_labeled_images
    from ssl_vit.monitors.probes import Probe

    if prepared.labeled is None:
        return None
    config, processes = prepared.config, prepared.processes
    labeled = read_labeled_images(
        prepared.labeled,
        config.monitor.labeled_images,
        config.backbone.height_width,
        processes.rank,
        processes.world_size,
        config.data.values,
    )
    return Probe(labeled, config.monitor.labeled_every_steps)


def open_validation(prepared: "Prepared", start_step: int) -> "Validation | None":
    """The validation of this rank's share of the images; None if there are none. Every rank calls
    it, and judges from the same past.

    Raises:
        UserError: An image cannot be read; raised on every rank.
    """
    from ssl_vit.monitors.labeled_images import Share, read_share
    from ssl_vit.monitors.multi_label_validation import MultiLabelValidation
    from ssl_vit.monitors.validation import Validation
    from ssl_vit.training.consensus import gather
    from ssl_vit.training.metrics_file import read_metrics

    config, wanted, processes = prepared.config, prepared.validation, prepared.processes
    settings = config.objective.validating
    if wanted is None or settings is None:
        return None
    share = Share(processes.rank, processes.world_size)
    size, failure = config.backbone.height_width, None
    try:
        mine = read_share(wanted.shards, wanted.numbers, size, share, config.data.values)
    except UserError as error:
        mine, failure = None, error
    for each in gather(failure, processes):
        if each is not None:
            raise each
    assert mine is not None
    kind = Validation if wanted.labels.ndim == 1 else MultiLabelValidation
    validation = kind(*mine, wanted.labels, wanted.num_classes, settings)
    lines = read_metrics(prepared.folder.validations) if processes.is_first else []
    for line in gather([line for line in lines if line["step"] <= start_step], processes)[0]:
        validation.judge(line["step"], line)
    return validation


def open_exports(prepared: "Prepared", objective: "Objective") -> "RunExports":
    """The run's exports."""
    from ssl_vit.exports.folder import ExportInfo, RunExports

    config = prepared.config
    info = ExportInfo.of_run(config, prepared.plan.data_fingerprint)
    folder, every = prepared.folder.exports, config.export.every_steps
    return RunExports(folder, objective, info, every, prepared.processes.is_first)


def open_log(prepared: "Prepared", start_step: int, device: "torch.device") -> "Log":
    """The first rank's log: metrics, progress line, monitors, alarms and panels."""
    from ssl_vit.monitors.collapse import CollapseWatch
    from ssl_vit.monitors.monitor import Monitor
    from ssl_vit.training.log import Log
    from ssl_vit.training.measures import peak_flops
    from ssl_vit.training.metrics import MetricsLog
    from ssl_vit.training.metrics_file import AppendedLines, lines_with
    from ssl_vit.training.progress import ProgressLine

    config, plan, folder = prepared.config, prepared.plan, prepared.folder
    metrics = MetricsLog(
        AppendedLines(folder.metrics, start_step),
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
        AppendedLines(folder.alarms, start_step),
        folder.panels,
        OptionalWrites(f"panels in {folder.panels}", "Training continues without them"),
    )
