"""Submitting a run: check whatever can be checked now, write the run folder, and give the job to
the scheduler. If that fails, nothing is left behind.
"""

import contextlib
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from ssl_vit.cost.disk import expected_disk
from ssl_vit.errors import UserError
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.pretrain import Prepared, is_complete
from ssl_vit.units import format_bytes
from ssl_vit_launch.batch import batch_parameters, batch_text, queue_jobs
from ssl_vit_launch.checks import (
    check_partition,
    check_run,
    check_space,
    mount_note,
    pickle_note,
    sharing_note,
)
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.evaluations import check_evaluation, submit_evaluations
from ssl_vit_launch.job import PretrainJob
from ssl_vit_launch.local import start_local
from ssl_vit_launch.schedulers import end, refuse_active
from ssl_vit_launch.slurm import has_slurm, is_responding
from ssl_vit_launch.snapshot import take_snapshot
from ssl_vit_launch.submission import (
    Submission,
    history_of,
    last_submission,
    new_folder,
    write_submission,
)


@dataclass(frozen=True)
class Request:
    """Arguments of a submission on the command line."""

    recipe: str
    run: Path
    overrides: tuple[str, ...]
    is_smoke: bool
    cluster: ClusterConfig
    nodes: int
    min_nodes: int
    """Minimum number of nodes that it may run on; at most ``nodes``."""
    profile: bool = False
    from_snapshot: bool = False
    """Whether the job runs a copy of the code, taken now or earlier (``code``), instead of the code
    installed when it starts.
    """
    code: str = ""
    """Folder of an earlier submission's snapshot; empty: take a new one."""
    then: tuple[str, ...] = ()
    at_exports: bool = False


def check(request: Request) -> Prepared:
    """Check everything that can be checked before queueing; writes nothing.

    Raises:
        UserError: An error that `ssl-vit pretrain` would report with that many processes; the run
            folder is in use; a limit of the partition.
    """
    slurm = request.cluster.scheduler == "slurm"
    if slurm and not has_slurm():
        raise UserError(
            "sbatch is not on PATH",
            "run on a login node, or use --cluster local; --dry-run works without SLURM",
        )
    refuse_active(request.run)
    prepared = _check_here(request)
    if is_complete(prepared.folder, prepared.plan.total_steps):
        raise UserError(
            f"{request.run} is complete: nothing is left to train",
            f"ssl-vit eval knn {shlex.quote(str(request.run))} …,  or use another --run folder",
        )
    if slurm:
        check_partition(request.cluster, request.nodes)
    check_space([prepared])
    return prepared


def _check_here(request: Request) -> Prepared:
    """The checks that do not ask SLURM."""
    if request.cluster.scheduler == "slurm" and "%" in str(request.run):
        raise UserError(
            f"the path {request.run} contains a %, which SLURM replaces in the names of log files",
            "choose another --run folder",
        )
    try:
        str(request.run).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {request.run} is not UTF-8, which the files of a job require",
            "choose another --run folder; ssl-vit pretrain accepts any",
        ) from None
    nodes = (request.nodes, request.min_nodes)
    prepared = check_run(
        request.recipe, request.run, request.overrides, request.is_smoke, request.cluster, nodes
    )
    for text in request.then:
        check_evaluation(text, request.run)
    if request.at_exports and not request.then:
        raise UserError("--at-exports has no effect without --then", "add  --then 'eval knn …'")
    return prepared


def queue(prepared: Sequence[Prepared], request: Request, home: Path) -> list[Submission]:
    """Write the run folders and queue them, as a job or an array of jobs.

    Args:
        prepared: Results of :func:`check`, one per run.
        request: The arguments of the submission.
        home: Folder for batch script and logs: the run folder, or the sweep's.

    Raises:
        UserError: The scheduler rejects the job; nothing is left behind.
    """
    undo = _Undo()
    try:
        return _queue(prepared, request, home, undo)
    except BaseException:
        undo.undo()
        raise


def _queue(
    prepared: Sequence[Prepared], request: Request, home: Path, undo: "_Undo"
) -> list[Submission]:
    roots = [each.folder.root for each in prepared]
    logs = new_folder(RunFolder(home).jobs)
    folders = [logs if root == home else new_folder(RunFolder(root).jobs) for root in roots]
    for each in prepared:
        undo.remember(each.folder.config)
        each.folder.write_config(each.config)
    for folder in {logs, *folders}:
        undo.make(folder)
    if not request.code:
        take_snapshot(logs / "code")
    asked = _submission(request, logs)
    found = [asked.model_copy(update={"run": str(root), "time": time.time()}) for root in roots]
    _write(folders, found)
    for each, job in zip(found, _hand_over(found, folders), strict=True):
        undo.queued.append(each.model_copy(update={"job": job}))
    found = undo.queued
    _write(folders, found)
    if request.cluster.scheduler == "slurm" and request.then:
        evaluations = submit_evaluations(found)
        for place, ids in enumerate(evaluations):
            found[place] = found[place].model_copy(update={"then_jobs": ids})
        _write(folders, found)
    for each in found:
        history_of(Path(each.run)).add("submitted", each.job, nodes=each.nodes)
    return found


def _submission(request: Request, logs: Path) -> Submission:
    """A submission without time and job id."""
    code = request.code or str(logs / "code")
    return Submission(
        run=str(request.run),
        logs=str(logs),
        cluster=request.cluster,
        nodes=request.nodes,
        min_nodes=request.min_nodes,
        profile=request.profile,
        code=code if request.from_snapshot else "",
        then=request.then,
        at_exports=request.at_exports,
    )


def _write(folders: Sequence[Path], submissions: Sequence[Submission]) -> None:
    for folder, submission in zip(folders, submissions, strict=True):
        write_submission(folder, submission)


def _hand_over(waiting: Sequence[Submission], folders: Sequence[Path]) -> list[str]:
    """Give submissions, written into their folders, to their scheduler; returns the job ids."""
    first = waiting[0]
    match first.cluster.scheduler:
        case "local":
            return start_local(waiting)
        case "slurm":
            payloads = [PretrainJob(each.run) for each in waiting]
            return queue_jobs(Path(first.logs), batch_parameters(first, folders), payloads)
        case _:
            assert_never(first.cluster.scheduler)


class _Undo:
    """Undoes a failed submission: cancels its jobs, and restores the folders."""

    def __init__(self) -> None:
        self.queued: list[Submission] = []
        self._configs: dict[Path, bytes | None] = {}
        self._made: list[Path] = []
        """Folders that did not exist before, outer ones first."""
        self._own: list[Path] = []
        """Those of them that are removed with their contents."""

    def remember(self, config: Path) -> None:
        """Remember a run folder's config before it is written."""
        self._configs[config] = config.read_bytes() if config.is_file() else None
        self._note_missing(config.parent)

    def make(self, folder: Path) -> None:
        """Make a submission's folder.

        Raises:
            UserError: Another command has just made it.
        """
        self._note_missing(folder.parent)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            raise UserError(
                f"{folder.parents[1]} is being submitted by another command",
                "wait for it to finish",
            ) from None
        self._made.append(folder)
        self._own.append(folder)

    def _note_missing(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self._made += [path for path in reversed(missing) if path not in self._made]

    def undo(self) -> None:
        """Undo it."""
        with contextlib.suppress(UserError, OSError):
            end(self.queued)
        for config, content in self._configs.items():
            if content is None:
                config.unlink(missing_ok=True)
            else:
                config.write_bytes(content)
        for folder in reversed(self._made):
            if folder in self._own:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: it holds other runs
                folder.rmdir()


def describe_request(prepared: Prepared, request: Request) -> list[str]:
    """Lines that describe what would be queued."""
    config, plan, cluster = prepared.config, prepared.plan, request.cluster
    disk = expected_disk(config, plan.total_steps)
    nodes = f"{request.nodes} node{'s' * (request.nodes > 1)}"
    if request.min_nodes < request.nodes:
        nodes += f" (at least {request.min_nodes})"
    processes = f"{cluster.processes_per_node} process{'es' * (cluster.processes_per_node > 1)}"
    length = (
        f"{plan.total_steps:,} steps of {config.data.global_batch_size} images "
        f"({plan.total_epochs:g} epochs of {plan.samples_per_epoch:,} images)"
        if plan.total_steps
        else f"{config.schedule.length:g} minutes in steps of {config.data.global_batch_size} "
        "images; their number follows from the speed measured at the start"
    )
    lines = [
        f"{config.recipe}: {length}",
        f"{nodes} × {processes}, ZeRO-{config.engine.stage_of(plan.world_size)}, "
        f"{plan.accumulation} × {plan.micro_batch_size} images per process",
    ]
    if disk is not None:
        lines.append(
            f"disk: {format_bytes(disk.total)} at the end, with {disk.num_checkpoints} "
            f"checkpoint{'s' * (disk.num_checkpoints != 1)} of {format_bytes(disk.checkpoint)}"
        )
    lines += [f"changed setting: {path} {change}" for path, change in prepared.changed.items()]
    root = prepared.folder.root
    notes = (sharing_note(root), mount_note(root, cluster), pickle_note(root))
    return [*lines, *filter(None, notes if cluster.scheduler == "slurm" else ())]


def dry_run(requests: Sequence[Request], home: Path) -> tuple[list[str], str]:
    """What would be queued, as lines of text and as the batch script, empty for a local job.

    Args:
        requests: One per run; several for a sweep.
        home: Folder for batch script and logs: the run folder, or the sweep's.

    Raises:
        UserError: As :func:`check`; if SLURM is not responding, the partition is not checked.
    """
    first = requests[0]
    prepared = [_check_here(request) for request in requests]
    check_space(prepared)
    lines = describe_request(prepared[0], first)
    if len(requests) > 1:
        lines += [f"{len(requests)} runs:", *(f"  {request.run}" for request in requests)]
    if first.cluster.scheduler == "local":
        return lines, ""
    if is_responding():
        check_partition(first.cluster, first.nodes)
    else:
        lines.append(
            "note: SLURM is not responding here, so the limits of the partition are not checked"
        )
    submission = _submission(first, new_folder(RunFolder(home).jobs))
    folders = [new_folder(RunFolder(request.run).jobs) for request in requests]
    return lines, batch_text(submission, folders)


def again(run: Path, nodes: int | None, min_nodes: int | None, from_snapshot: bool) -> Request:
    """The arguments of a run's newest submission, for another one.

    Args:
        nodes, min_nodes: None: as before.
        from_snapshot: Whether to run that submission's snapshot of the code.

    Raises:
        UserError: The run was never submitted, or the snapshot is gone.
    """
    last = last_submission(run)
    code = (last.code or f"{last.logs}/code") if from_snapshot else ""
    if code and not Path(code).is_dir():
        raise UserError(f"the snapshot {code} no longer exists", "leave out --from-snapshot")
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
        code=code,
        then=last.then,
        at_exports=last.at_exports,
    )
