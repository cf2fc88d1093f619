"""Where a run goes, never what it is."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ssl_vit.config import Config, read_yaml, validate


class ClusterConfig(Config):
    """A cluster profile, kept in a YAML file of its own."""

    scheduler: Literal["slurm", "local"] = "slurm"
    """`local` runs the same job on this machine, without SLURM."""

    partition: str = ""
    """SLURM partition; empty: the cluster's default."""

    account: str = ""
    """SLURM account; empty: the user's default."""

    processes_per_node: int = Field(default=1, ge=1)
    """One for every GPU."""

    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs to ask for on every node."""

    cpus_per_process: int = Field(default=1, ge=1)
    """Processor cores of every process, its data workers included."""

    memory_gb: int = Field(default=0, ge=0)
    """Memory of a node in GB; 0: the cluster's default."""

    timeout_minutes: int = Field(default=1440, ge=1)
    """Time limit of one job; a run that needs longer is requeued and resumes."""

    warn_seconds: int = Field(default=120, ge=1)
    """How long before the time limit SLURM asks the run to save."""


def read_cluster(name: str) -> ClusterConfig:
    """The word `local`, or a profile's YAML file.

    Raises:
        UserError: The file is missing or does not validate.
    """
    if name == "local":
        return ClusterConfig(scheduler="local")
    return validate(ClusterConfig, read_yaml(Path(name)), name)
