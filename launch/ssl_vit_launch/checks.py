"""Checks before a job is queued, in addition to those of `ssl-vit pretrain`.

An error found here costs a second; one found inside the job costs the wait in the queue.
"""

import contextlib
import grp
import os
import pwd
import shlex
import shutil
import stat
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ssl_vit.cost.disk import expected_disk
from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.run.environment import PACKAGES
from ssl_vit.run.pretrain import Prepared, prepare
from ssl_vit.units import format_bytes
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.slurm import Partition, find_partitions

# File systems that only this machine can see.
_LOCAL_FILE_SYSTEMS = ("tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay")


def check_run(
    recipe: str,
    run: Path,
    overrides: Sequence[str],
    is_smoke: bool,
    cluster: ClusterConfig,
    nodes: tuple[int, int],
) -> Prepared:
    """Check config, shards, index, divisibility, run folder and versions.

    Args:
        recipe, run, overrides, is_smoke: As for ``pretrain.prepare``.
        cluster: Profile of the cluster that it will run on.
        nodes: Nodes asked for, and the minimum it may run on.

    Raises:
        UserError: An error that `ssl-vit pretrain` would report with that many processes; a missing
            package.
    """
    per_node = cluster.processes_per_node
    if nodes[1] > nodes[0]:
        raise UserError(
            f"--min-nodes {nodes[1]} is more than --nodes {nodes[0]}",
            "lower --min-nodes or raise --nodes",
        )
    # The minimum first: on --nodes only the division over more processes can still fail.
    for count in (nodes[1], nodes[0]):
        processes = Processes(world_size=count * per_node, local_world_size=per_node)
        prepared = prepare(recipe, run, overrides, is_smoke, processes)
    if not cluster.container.image:  # a container has its own packages
        check_versions()
    return prepared


def check_versions() -> None:
    """Check that the packages needed for training are installed.

    Raises:
        UserError: One is missing; names it.
    """
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            raise UserError(
                f"{package} is not installed in the environment of this ssl-vit",
                f"pip install {package}",
            ) from None


def check_space(runs: Sequence[Prepared]) -> None:
    """Check that the disk has room for the checkpoints and exports of all runs. Imports torch to
    count parameters, if it is installed, and so comes after all other checks.

    Raises:
        UserError: Together they need more than is free.
    """
    root = runs[0].folder.root
    needed = 0
    for each in runs:
        disk = expected_disk(each.config, each.plan.total_steps)
        if disk is None:
            return
        # While a checkpoint is being written, those it replaces are still there.
        needed += disk.total + disk.checkpoint - _used(each.folder.root)
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{existing} has {format_bytes(free)} free; checkpoints and exports need "
            f"{format_bytes(needed)}",
            "free some space, use another --run folder, or keep fewer (checkpoint.keep_last=1, "
            "export.every_steps=N)",
        )


def _used(run: Path) -> int:
    """Bytes of existing checkpoints and exports."""
    files = (file for part in ("checkpoints", "exports") for file in (run / part).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def check_partition(cluster: ClusterConfig, nodes: int) -> None:
    """Check what is asked for against the limits of the partition; of several, one has to fit.

    Raises:
        UserError: No such partition; it is not up; it has fewer nodes, GPUs, cores, memory or
            minutes than asked for.
    """
    problems = [
        _partition_problem(each, cluster, nodes) for each in find_partitions(cluster.partition)
    ]
    if all(problems):
        assert problems[0] is not None
        raise problems[0]


def _partition_problem(found: Partition, cluster: ClusterConfig, nodes: int) -> UserError | None:
    title = f"partition {found.name}"
    if found.state != "UP":
        return UserError(f"{title} is {found.state}", "wait, or use another partition")
    cpus = cluster.processes_per_node * cluster.cpus_per_process
    memory = cluster.memory_gb * 1024
    # Asked for, limit (0: none known), what it is, what to change.
    limits = [
        (nodes, found.total_nodes, "nodes", "lower --nodes"),
        (nodes, found.max_nodes, "nodes per job", "lower --nodes"),
        (
            cluster.timeout_minutes,
            found.max_minutes,
            "minutes per job",
            f"timeout_minutes: {found.max_minutes} (a run that needs longer is requeued)",
        ),
        (cpus, found.most_cpus, "cores per node", "lower processes_per_node or cpus_per_process"),
        (memory, found.most_memory_mb, "MB of memory per node", "lower memory_gb"),
    ]
    for asked, most, what, remedy in limits:
        if most and asked > most:
            return UserError(f"{asked:,} {what} requested, but {title} has {most:,}", remedy)
    # Here 0 means none, not unknown.
    if found.most_cpus and cluster.gpus_per_node > found.most_gpus:
        return UserError(
            f"{cluster.gpus_per_node} GPUs per node requested, but {title} has {found.most_gpus}",
            f"gpus_per_node: at most {found.most_gpus}, or use another partition",
        )
    return None


def sharing_note(run: Path) -> str:
    """A note if the nodes may not see the run folder; empty if nothing suggests that."""
    existing = next(path for path in (run, *run.parents) if path.exists())
    kind = file_system(existing)
    if kind not in _LOCAL_FILE_SYSTEMS:
        return ""
    return (
        f"note: {run} is on a local disk of this machine ({kind}); if a node cannot see it, the "
        "job reports that and stops"
    )


def mount_note(run: Path, cluster: ClusterConfig) -> str:
    """A note if the container may not see the run folder; empty if it does."""
    box = cluster.container
    inside = [mount.rpartition(":")[2] if ":" in mount else mount for mount in box.mounts]
    if not box.image or any(run.is_relative_to(folder) for folder in inside):
        return ""
    return f"note: container.mounts does not cover {run}; the shards must be mounted as well"


def pickle_note(run: Path) -> str:
    """A note if another user could change the pickle that a job reads; empty if nobody can."""
    for folder in (run / "jobs", run):
        if folder.is_dir() and (who := _others_writing(folder.stat())):
            return (
                f"note: {folder} is writable by {who}; submitit loads a pickle from it, so they "
                f"could run programs as you:  chmod go-w {shlex.quote(str(folder))}"
            )
    return ""


def _others_writing(facts: os.stat_result) -> str:
    if facts.st_mode & stat.S_IWOTH:
        return "everyone"
    if facts.st_uid not in (os.geteuid(), 0):
        return "its owner, another user"
    if not facts.st_mode & stat.S_IWGRP:
        return ""
    with contextlib.suppress(KeyError):  # in a container without user names
        me = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(facts.st_gid)
        # Many systems give every user a private group of the same name.
        if group.gr_name == me.pw_name and not set(group.gr_mem) - {me.pw_name}:
            return ""
        return f"the group {group.gr_name}"
    return "its group"


def file_system(path: Path) -> str:
    """Type of the file system that holds a path, such as `nfs4`; empty if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = os.path.realpath(path)
    best = ("", "")
    for _, mounted, kind, *_ in mounts:
        mounted = mounted.replace("\\040", " ")
        inside = mounted == "/" or place == mounted or place.startswith(mounted + "/")
        if inside and len(mounted) >= len(best[0]):
            best = (mounted, kind)
    return best[1]
