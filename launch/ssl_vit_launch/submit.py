"""Submitting: check everything that can be checked here, write the run folder, hand its path
over.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.pretrain import prepare
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.job import PretrainJob

if TYPE_CHECKING:
    import submitit


def submit(
    recipe: str,
    run: Path,
    overrides: Sequence[str],
    is_smoke: bool,
    cluster: ClusterConfig,
    nodes: int,
) -> "submitit.Job[int]":
    """Queue one run.

    Raises:
        UserError: Whatever `ssl-vit pretrain` would refuse on that many processes, or no SLURM
            here.
    """
    if cluster.scheduler == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on PATH", "run on a login node, or --cluster local")
    if cluster.scheduler == "local" and nodes != 1:
        raise UserError(
            f"--nodes {nodes} with a local cluster, which is one machine",
            "use --nodes 1, and processes_per_node in the cluster profile",
        )
    everyone = Processes(
        world_size=nodes * cluster.processes_per_node, local_world_size=cluster.processes_per_node
    )
    run = run.absolute()
    prepared = prepare(recipe, run, overrides, is_smoke, everyone)
    prepared.folder.write_config(prepared.config)

    import submitit

    executor = submitit.AutoExecutor(
        folder=str(prepared.folder.slurm),
        cluster=cluster.scheduler,
        # submitit gives up after three time limits; a pre-training run has as many as it needs.
        slurm_max_num_timeout=1_000_000,
    )
    executor.update_parameters(**executor_parameters(cluster, nodes, run.name))
    return executor.submit(PretrainJob(str(run)))


def _gpus_here(cluster: ClusterConfig) -> int:
    """submitit hides this machine's GPUs from a local job that does not ask for them."""
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) if cluster.scheduler == "local" else 0


def executor_parameters(cluster: ClusterConfig, nodes: int, name: str) -> dict[str, Any]:
    """submitit's parameters for a profile."""
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": nodes,
        "tasks_per_node": cluster.processes_per_node,
        "cpus_per_task": cluster.cpus_per_process,
        "timeout_min": cluster.timeout_minutes,
    }
    if gpus := cluster.gpus_per_node or _gpus_here(cluster):
        parameters["gpus_per_node"] = gpus
    if cluster.memory_gb:
        parameters["mem_gb"] = cluster.memory_gb
    if cluster.scheduler == "slurm":
        parameters["slurm_signal_delay_s"] = cluster.warn_seconds
        parameters["slurm_additional_parameters"] = {"requeue": True}
        if cluster.partition:
            parameters["slurm_partition"] = cluster.partition
        if cluster.account:
            parameters["slurm_account"] = cluster.account
    return parameters
