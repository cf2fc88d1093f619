"""Submitting: check everything that can be checked here, write the run folder, hand its path
over. Where that fails, nothing is left behind.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit.forecast import disk_of
from ssl_vit.pretrain import Prepared
from ssl_vit.quantities import format_bytes
from ssl_vit.run_folder import RunFolder
from ssl_vit_launch.batch import batch_parameters, batch_text, queue_jobs
from ssl_vit_launch.checks import check_partition, check_run, sharing_note
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.evaluations import check_evaluation, submit_evaluations
from ssl_vit_launch.job import PretrainJob
from ssl_vit_launch.local import start_local
from ssl_vit_launch.schedulers import refuse_active
from ssl_vit_launch.slurm import answers, has_slurm
from ssl_vit_launch.snapshot import take_snapshot
from ssl_vit_launch.submission import (
    Submission,
    history_of,
    new_folder,
    newest_submission,
    write_submission,
)


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    recipe: str
    run: Path
    overrides: tuple[str, ...]
    is_smoke: bool
    cluster: ClusterConfig
    nodes: int
    min_nodes: int
    """With how many it may start again; at most ``nodes``."""
    profile: bool = False
    from_snapshot: bool = False
    """Whether the job runs the copy of the code that is taken now (or, where ``code`` is given, was
    taken then) instead of what is installed when it starts.
    """
    code: str = ""
    """Folder of an earlier submission's snapshot."""
    then: tuple[str, ...] = ()
    at_exports: bool = False


def submit(request: Request) -> Submission:
    """Queue one run.

    Raises:
        UserError: Whatever `ssl-vit pretrain` would refuse on that many processes; the run folder
            is in use; the cluster has no such partition, nodes, time; SLURM refuses.
    """
    prepared = check(request)
    (submission,) = queue([prepared], request, prepared.folder.root)
    return submission


def check(request: Request) -> Prepared:
    """Find every mistake that can be found before queueing; writes nothing."""
    slurm = request.cluster.scheduler == "slurm"
    if slurm and not has_slurm():
        raise UserError(
            "there is no sbatch on PATH",
            "run on a login node, or --cluster local; --dry-run needs no SLURM",
        )
    refuse_active(request.run)
    prepared = _check_here(request)
    if slurm:
        check_partition(request.cluster, request.nodes)
    return prepared


def _check_here(request: Request) -> Prepared:
    """Without asking SLURM."""
    nodes = (request.nodes, request.min_nodes)
    prepared = check_run(
        request.recipe, request.run, request.overrides, request.is_smoke, request.cluster, nodes
    )
    for text in request.then:
        check_evaluation(text, request.run)
    if request.at_exports and not request.then:
        raise UserError("--at-exports says when, and not what", "add  --then 'eval knn …'")
    return prepared


def queue(prepared: Sequence[Prepared], request: Request, home: Path) -> list[Submission]:
    """Write the run folders and hand them over: a job, or an array of jobs.

    Args:
        prepared: What :func:`check` returned for each run.
        request: How they were asked for.
        home: Folder of batch script and logs: the run's own, or a sweep's.
    """
    roots = [each.folder.root for each in prepared]
    logs = new_folder(RunFolder(home).jobs)
    with _undoing([home, *roots]):
        for each in prepared:
            each.folder.write_config(each.config)
        code = request.code or str(logs / "code")
        if not request.code:
            take_snapshot(Path(code))
        asked = Submission(
            run="",
            logs=str(logs),
            cluster=request.cluster,
            nodes=request.nodes,
            min_nodes=request.min_nodes,
            profile=request.profile,
            code=code if request.from_snapshot else "",
            then=request.then,
            at_exports=request.at_exports,
            time=time.time(),
        )
        waiting = [asked.model_copy(update={"run": str(root)}) for root in roots]
        folders = [logs if root == home else new_folder(RunFolder(root).jobs) for root in roots]
        for folder, each in zip(folders, waiting, strict=True):
            write_submission(folder, each)
        jobs = _hand_over(waiting)
        found = [
            each.model_copy(update={"job": job}) for each, job in zip(waiting, jobs, strict=True)
        ]
        for folder, each in zip(folders, found, strict=True):
            write_submission(folder, each)
            history_of(Path(each.run)).add("submitted", each.job, nodes=each.nodes)
    if request.cluster.scheduler == "slurm" and request.then:
        submit_evaluations(found)
    return found


def _hand_over(waiting: Sequence[Submission]) -> list[str]:
    """Give them to the scheduler; returns their job ids."""
    first = waiting[0]
    if first.cluster.scheduler == "local":
        return start_local(waiting)
    payloads = [PretrainJob(each.run) for each in waiting]
    return queue_jobs(Path(first.logs), batch_parameters(first), payloads)


@contextlib.contextmanager
def _undoing(roots: Sequence[Path]) -> Iterator[None]:
    """Where the block fails, leave folders as they were."""
    absent = [root for root in roots if not root.exists()]
    configs = {
        config: config.read_bytes()
        for config in (RunFolder(root).config for root in roots)
        if config.is_file()
    }
    jobs = {RunFolder(root).jobs for root in roots}
    before = {path for folder in jobs if folder.is_dir() for path in folder.iterdir()}
    made = _missing_parents(absent)
    try:
        yield
    except BaseException:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        for config, content in configs.items():
            config.write_bytes(content)
        for folder in jobs:
            for path in folder.iterdir() if folder.is_dir() else ():
                if path not in before:
                    shutil.rmtree(path, ignore_errors=True)
        raise


def _missing_parents(roots: Sequence[Path]) -> list[Path]:
    """The topmost folder that would have to be made for each."""
    found = []
    for root in roots:
        above = [root, *root.parents]
        missing = [path for path in above if not path.exists()]
        found.append(missing[-1])
    return found


def describe_request(prepared: Prepared, request: Request) -> list[str]:
    """What would be queued, for a person."""
    config, plan, cluster = prepared.config, prepared.plan, request.cluster
    disk = disk_of(config, plan.total_steps)
    elastic = f" (again with {request.min_nodes} or more)"
    lines = [
        f"{config.recipe}: {plan.total_steps:,} updates of {config.data.global_batch_size} "
        f"({plan.total_epochs:g} epochs of {plan.samples_per_epoch:,} images)",
        f"{request.nodes} nodes{elastic if request.min_nodes < request.nodes else ''} × "
        f"{cluster.processes_per_node} processes, ZeRO-{config.engine.zero_stage}, "
        f"{plan.accumulation} × {plan.micro_batch_size} images a process",
        f"disk: {format_bytes(disk.total)} at the end, {disk.num_checkpoints} checkpoints of "
        f"{format_bytes(disk.checkpoint)}",
    ]
    lines += [f"changed since: {path} {change}" for path, change in prepared.changed.items()]
    return [*lines, *filter(None, [sharing_note(prepared.folder.root)])]


def dry_run(requests: Sequence[Request], home: Path) -> tuple[list[str], str]:
    """What would be queued, in words and as sbatch's text; the text is empty for a local job.

    Args:
        requests: Of one run, or of all runs of a sweep.
        home: Folder of batch script and logs: the run's own, or the sweep's.

    Raises:
        UserError: As :func:`submit`; where no SLURM answers, the partition is not looked at.
    """
    first = requests[0]
    prepared = [_check_here(request) for request in requests]
    lines = describe_request(prepared[0], first)
    if len(requests) > 1:
        lines += [f"{len(requests)} runs:", *(f"  {request.run}" for request in requests)]
    if first.cluster.scheduler == "local":
        return lines, ""
    if answers():
        check_partition(first.cluster, first.nodes)
    else:
        lines.append("note: no SLURM answers here, so what the partition allows is not known")
    logs = str(new_folder(RunFolder(home).jobs))
    submission = Submission(
        run=str(first.run),
        logs=logs,
        cluster=first.cluster,
        nodes=first.nodes,
        min_nodes=first.min_nodes,
        code=(first.code or f"{logs}/code") if first.from_snapshot else "",
    )
    return lines, batch_text(submission, len(requests))


def again(run: Path, nodes: int | None, min_nodes: int | None, from_snapshot: bool) -> Request:
    """What was asked for last, for another submission.

    Args:
        nodes, min_nodes: None for as many as before.
        from_snapshot: Whether to run the code as it was then.

    Raises:
        UserError: The folder was never submitted.
    """
    last = newest_submission(run)
    if last is None:
        raise UserError(f"{run} was never submitted", f"ssl-vit launch submit … --run {run}")
    wanted = nodes or last.nodes
    least = min_nodes or (min(last.min_nodes, wanted) if last.min_nodes < last.nodes else wanted)
    return Request(
        recipe=str(run),
        run=run,
        overrides=(),
        is_smoke=False,
        cluster=last.cluster,
        nodes=wanted,
        min_nodes=least,
        from_snapshot=from_snapshot,
        code=(last.code or f"{last.logs}/code") if from_snapshot else "",
        then=last.then,
        at_exports=last.at_exports,
    )
