"""Cluster profiles: where and with which resources a run is trained, never what it trains."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ssl_vit.config import Config, validate
from ssl_vit.errors import UserError, refuse_control_characters
from ssl_vit.foreign import read_yaml

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Options of sbatch that follow from the profile and the command line.
_RESERVED = {
    *("array", "dependency", "error", "job-name", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "time"),
}
_RESERVED_REMEDY = "leave it out; use timeout_minutes, warn_seconds and --nodes"
# Settings that apply to a job on this machine.
_LOCAL = {"scheduler", "processes_per_node", "max_crashes", "environment", "network_interface"}
_LOCAL |= {"local_cache"}
_TEXTS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "network_interface",
    "local_cache",
)


class ContainerConfig(Config):
    """Configuration of the container that every process runs in; it has ssl-vit installed."""

    image: str = ""
    """Image file or name; empty: no container."""

    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """`apptainer`, a program on the nodes, or `pyxis`, NVIDIA's plugin for srun."""

    mounts: tuple[str, ...] = ()
    """Folders to mount, each as `/outside:/inside` or `/same`; must cover shards and runs."""

    arguments: tuple[str, ...] = ()
    """Additional arguments of `apptainer exec`, or of srun with pyxis."""

    python: str = "python"
    """Python interpreter inside the container."""


class ClusterConfig(Config):
    """Configuration of a cluster profile, a YAML file of its own; see launch/clusters."""

    scheduler: Literal["slurm", "local"] = "slurm"
    """`local` runs the same job on this machine, without SLURM."""

    partition: str = ""
    """SLURM partition; empty: the cluster's default."""

    account: str = ""
    """SLURM account; empty: the user's default."""

    qos: str = ""
    """SLURM quality of service; empty: the user's default."""

    constraint: str = ""
    """Features that nodes must have, such as `a100|h100`; empty: any node."""

    exclude: str = ""
    """Nodes not to use, such as `gpu[007,012]`; empty: none."""

    processes_per_node: int = Field(default=1, ge=1)
    """Processes per node, one for each GPU."""

    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs to request per node."""

    cpus_per_process: int = Field(default=1, ge=1)
    """CPU cores per process, including its data workers."""

    memory_gb: int = Field(default=0, ge=0)
    """Memory per node in GB; 0: the cluster's default."""

    timeout_minutes: int = Field(default=1440, ge=1)
    """Time limit of one job; a run that needs longer is requeued and resumes."""

    warn_seconds: int = Field(default=120, ge=1, le=65535)
    """Seconds before the time limit at which SLURM asks the run to save."""

    max_crashes: int = Field(default=3, ge=1)
    """Consecutive crashes without a new checkpoint after which the run fails; 1: never restart.
    Preemptions, time limits and failed nodes do not count.
    """

    modules: tuple[str, ...] = ()
    """Modules to load (`module load …`) before the run starts."""

    setup: tuple[str, ...] = ()
    """Lines of bash run on the first node before the start; exports reach every process."""

    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every process."""

    network_interface: str = ""
    """Network interface for communication, such as `ib0`; empty: chosen by NCCL and gloo.
    """

    local_cache: str = ""
    """Folder on each node's local disk to cache remote shards in, such as `$SLURM_TMPDIR/shards`;
    variables are expanded on the node. Empty: `engine.cache_folder`.
    """

    container: ContainerConfig = ContainerConfig()

    srun: tuple[str, ...] = ()
    """Additional arguments of srun, such as `--cpu-bind=none`."""

    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Additional options of sbatch by their long names, such as `mail-type: FAIL`; `true` for an
    option without a value.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _refuse_control_characters(self)
        wrong = [name for name in self.environment if not _VARIABLE.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"environment.{wrong[0]} is not a variable name; use letters, digits and _"
            )
        if self.warn_seconds >= 60 * self.timeout_minutes:
            raise ValueError(
                f"warn_seconds={self.warn_seconds} is not less than timeout_minutes="
                f"{self.timeout_minutes}; raise timeout_minutes or lower warn_seconds"
            )
        if 0 < self.gpus_per_node < self.processes_per_node:
            raise ValueError(
                f"processes_per_node={self.processes_per_node} is more than gpus_per_node="
                f"{self.gpus_per_node}; use one process per GPU"
            )
        odd = [name for name in self.sbatch if not re.fullmatch("[a-z][a-z0-9-]*", name)]
        if odd:
            raise ValueError(f"sbatch.{odd[0]!r} is not a long sbatch option, such as mail-type")
        reserved = sorted(set(self.sbatch) & _RESERVED)
        if reserved:
            raise ValueError(f"sbatch.{reserved[0]} is set by the launcher; {_RESERVED_REMEDY}")
        if self.scheduler == "local":
            default = type(self).model_construct(scheduler="local")
            for name in sorted(set(type(self).model_fields) - _LOCAL):
                if getattr(self, name) != getattr(default, name):
                    raise ValueError(f"{name} has no effect with scheduler: local; leave it out")
        return self

    def exports(self) -> Mapping[str, str]:
        """Environment variables that a job's processes start with."""
        network = self.network_interface
        # NCCL treats a name as a prefix, gloo matches it exactly; both accept lists with commas.
        interfaces = {"GLOO_SOCKET_IFNAME": network, "NCCL_SOCKET_IFNAME": network}
        return {**(interfaces if network else {}), **self.environment}

    def setup_lines(self) -> list[str]:
        """Bash lines before the processes start, with `must CODE LINE` after each that may fail."""
        modules = [f"module load {shlex.quote(module)}" for module in self.modules]
        lines = []
        for line in (*modules, *self.setup):
            lines += [line, f"must $? {shlex.quote(line)}"]
        return lines + [
            f"export {name}={shlex.quote(text)}" for name, text in self.exports().items()
        ]

    def srun_words(self) -> list[str]:
        """Arguments between srun and Python: srun's own options, and the container."""
        words, box = list(self.srun), self.container
        if not box.image:
            return words
        # submitit's command begins with this machine's interpreter; the container has its own.
        inside = ["sh", "-c", f'shift; exec {shlex.quote(box.python)} "$@"', "sh"]
        match box.runtime:
            case "pyxis":
                mounts = [f"--container-mounts={','.join(box.mounts)}"] if box.mounts else []
                return [*words, f"--container-image={box.image}", *mounts, *box.arguments, *inside]
            case "apptainer":
                binds = [word for mount in box.mounts for word in ("--bind", mount)]
                gpus = ["--nv"] if self.gpus_per_node else []
                run = ["apptainer", "exec", *gpus, *binds, *box.arguments, box.image]
                return [*words, *run, *inside]


def _refuse_control_characters(profile: ClusterConfig) -> None:
    """Refuse line breaks and other control characters, which would become lines of the batch
    script. `setup` consists of bash lines, and the values of `environment` are quoted.
    """
    box = profile.container
    texts = {
        **{name: getattr(profile, name) for name in _TEXTS},
        "modules": " ".join(profile.modules),
        "srun": " ".join(profile.srun),
        "container": " ".join((box.image, *box.mounts, *box.arguments, box.python)),
        **{f"sbatch.{name}": str(value) for name, value in profile.sbatch.items()},
    }
    for name, text in texts.items():
        refuse_control_characters(name, text, "leave it out")
    for name in ("partition", "account", "qos", "constraint", "exclude"):
        if "%" in texts[name]:
            raise ValueError(f"{name}={texts[name]} contains a %; leave it out")
    if any("\0" in text for text in (*profile.setup, *profile.environment.values())):
        raise ValueError("setup or environment contains a NUL character; leave it out")


def read_cluster(name: str) -> ClusterConfig:
    """Read a profile's YAML file, or return the default profile for `local`.

    Raises:
        UserError: The file is missing or does not validate.
    """
    if name == "local":
        return ClusterConfig(scheduler="local")
    file = Path(name)
    if not file.is_file():
        raise UserError(
            f"no cluster profile at {name}",
            "check the path; launch/clusters has examples, and  --cluster local  needs no file",
        )
    # Not through OmegaConf: `${NAME}` in a line of bash is for bash to expand.
    return validate(ClusterConfig, read_yaml(file), name)
