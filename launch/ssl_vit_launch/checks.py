"""What is checked before a job is queued, beyond what `ssl-vit pretrain` would check by itself.

A mistake that is found here costs a second; one that is found in the job costs the wait for it.
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

# File systems that other machines cannot see.
_PRIVATE = ("tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay")


def check_run(
    recipe: str,
    run: Path,
    overrides: Sequence[str],
    is_smoke: bool,
    cluster: ClusterConfig,
    nodes: tuple[int, int],
) -> Prepared:
    """Config, shards, index, divisibility, the run folder and versions.

    Args:
        recipe, run, overrides, is_smoke: As for ``pretrain.prepare``.
        cluster: Where it will run.
        nodes: Machines asked for, and with how many it may start again.

    Raises:
        UserError: Whatever `ssl-vit pretrain` would refuse on that many processes; a missing
            package.
    """
    per_node = cluster.processes_per_node
    if nodes[1] > nodes[0]:
        raise UserError(
            f"--min-nodes {nodes[1]} is more than --nodes {nodes[0]}", "give at most --nodes"
        )
    # The least first: its mistakes are those of all but the division over more processes.
    for count in (nodes[1], nodes[0]):
        everyone = Processes(world_size=count * per_node, local_world_size=per_node)
        prepared = prepare(recipe, run, overrides, is_smoke, everyone)
    if not cluster.container.image:  # which has its own
        check_versions()
    return prepared


def check_versions() -> None:
    """Refuse to queue what would find no training library.

    Raises:
        UserError: A package is not installed; names it.
    """
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            raise UserError(
                f"{package} is not installed beside this ssl-vit", f"pip install {package}"
            ) from None


def check_space(runs: Sequence[Prepared]) -> None:
    """Refuse what the disk has no room for. Imports torch to count parameters, if it is installed;
    so after all other checks.

    Raises:
        UserError: All runs together need more than is free.
    """
    root = runs[0].folder.root
    needed = 0
    for each in runs:
        disk = expected_disk(each.config, each.plan.total_steps)
        if disk is None:
            return
        # While a checkpoint is written, it and the ones it replaces are there.
        needed += disk.total + disk.checkpoint - _used(each.folder.root)
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{existing} has {format_bytes(free)} free; checkpoints and exports need "
            f"{format_bytes(needed)}",
            "make room, use another --run folder, or keep fewer (checkpoint.keep_last=1, "
            "export.every_steps=N)",
        )


def _used(run: Path) -> int:
    """Bytes of checkpoints and exports that are there already."""
    files = (file for part in ("checkpoints", "exports") for file in (run / part).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def check_partition(cluster: ClusterConfig, nodes: int) -> None:
    """What the cluster allows; of several partitions one has to do.

    Raises:
        UserError: No such partition; it is closed; more nodes, GPUs, cores, memory or time than it
            has.
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
        return UserError(f"{title} is {found.state}", "wait, or use another")
    cpus = cluster.processes_per_node * cluster.cpus_per_process
    memory = cluster.memory_gb * 1024
    # What is asked, what there is (0: no limit is known), in whose words, what to change.
    limits = [
        (nodes, found.total_nodes, "nodes", "give fewer --nodes"),
        (nodes, found.max_nodes, "nodes a job", "give fewer --nodes"),
        (
            cluster.timeout_minutes,
            found.max_minutes,
            "minutes a job",
            f"timeout_minutes: {found.max_minutes} (a run that needs longer is requeued)",
        ),
        (cpus, found.most_cpus, "cores a node", "lower processes_per_node or cpus_per_process"),
        (memory, found.most_memory_mb, "MB of memory a node", "lower memory_gb"),
    ]
    for asked, most, what, remedy in limits:
        if most and asked > most:
            return UserError(f"{asked:,} {what}, and {title} has {most:,}", remedy)
    # Here nothing means none.
    if found.most_cpus and cluster.gpus_per_node > found.most_gpus:
        return UserError(
            f"{cluster.gpus_per_node} GPUs a node, and {title} has {found.most_gpus}",
            f"gpus_per_node: at most {found.most_gpus}, or another partition",
        )
    return None


def sharing_note(run: Path) -> str:
    """What to say where the nodes may not see the run folder; empty where nothing speaks for
    that.
    """
    existing = next(path for path in (run, *run.parents) if path.exists())
    kind = file_system(existing)
    if kind not in _PRIVATE:
        return ""
    return (
        f"note: {run} lies on this machine's own disk ({kind}); a node that does not see it will "
        "say so and stop"
    )


def mount_note(run: Path, cluster: ClusterConfig) -> str:
    """What to say where a container may not see the run folder; empty where it does."""
    box = cluster.container
    inside = [mount.rpartition(":")[2] if ":" in mount else mount for mount in box.mounts]
    if not box.image or any(run.is_relative_to(folder) for folder in inside):
        return ""
    return f"note: no folder of container.mounts holds {run}; shards must be seen inside too"


def pickle_note(run: Path) -> str:
    """What to say where somebody else could change what a job reads; empty where nobody can."""
    for folder in (run / "jobs", run):
        if folder.is_dir() and (who := _others_writing(folder.stat())):
            return (
                f"note: {folder} can be written by {who}; submitit reads a pickle there, by which "
                f"they could run programs as you:  chmod go-w {shlex.quote(str(folder))}"
            )
    return ""


def _others_writing(facts: os.stat_result) -> str:
    if facts.st_mode & stat.S_IWOTH:
        return "everybody"
    if facts.st_uid not in (os.geteuid(), 0):
        return "its owner, another user"
    if not facts.st_mode & stat.S_IWGRP:
        return ""
    with contextlib.suppress(KeyError):  # of a container that knows no names
        me = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(facts.st_gid)
        # Many systems give every user a group of their own, of the same name.
        if group.gr_name == me.pw_name and not set(group.gr_mem) - {me.pw_name}:
            return ""
        return f"the group {group.gr_name}"
    return "its group"


def file_system(path: Path) -> str:
    """The type of the file system that holds a path, such as `nfs4`; empty where nothing says."""
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
