"""Where a run goes, never what it is."""

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
_OURS = {
    *("array", "dependency", "error", "job-name", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "time"),
}
_OURS_REMEDY = "leave it out; timeout_minutes, warn_seconds and --nodes say it"
# Settings that a job on this machine heeds.
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
    """A container that every process of a job runs in; ssl-vit is installed in it."""

    image: str = ""
    """An image file or name; empty: no container."""

    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """`apptainer` is a program of that name on the nodes; `pyxis` is NVIDIA's plugin for srun."""

    mounts: tuple[str, ...] = ()
    """Folders to see inside, each as `/outside:/inside` or `/same`. Shards and runs belong here."""

    arguments: tuple[str, ...] = ()
    """More words for `apptainer exec`, or for srun with pyxis."""

    python: str = "python"
    """The interpreter inside."""


class ClusterConfig(Config):
    """A cluster profile, kept in a YAML file of its own; launch/clusters has examples."""

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
    """One for every GPU."""

    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs to ask for on every node."""

    cpus_per_process: int = Field(default=1, ge=1)
    """Processor cores of every process, its data workers included."""

    memory_gb: int = Field(default=0, ge=0)
    """Memory of a node in GB; 0: the cluster's default."""

    timeout_minutes: int = Field(default=1440, ge=1)
    """Time limit of one job; a run that needs longer is requeued and resumes."""

    warn_seconds: int = Field(default=120, ge=1, le=65535)
    """How long before the time limit SLURM asks the run to save."""

    max_crashes: int = Field(default=3, ge=1)
    """Crashes in a row, without a new checkpoint between them, after which a run is left to fail; 1
    never starts one again. Preemptions, time limits and failed nodes do not count.
    """

    modules: tuple[str, ...] = ()
    """Modules to load (`module load …`) before the run starts."""

    setup: tuple[str, ...] = ()
    """Lines of bash before the run starts, on the first node; what they export reaches all."""

    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every process."""

    network_interface: str = ""
    """Interface through which processes meet, such as `ib0`; empty: NCCL's and gloo's own choice.
    """

    local_cache: str = ""
    """Folder on each node's own disk where shards from elsewhere are kept, such as
    `$SLURM_TMPDIR/shards`; variables are expanded on the node. Empty: `engine.cache_folder`.
    """

    container: ContainerConfig = ContainerConfig()

    srun: tuple[str, ...] = ()
    """More words for srun, such as `--cpu-bind=none`."""

    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """More options of sbatch by their long names, such as `mail-type: FAIL`; `true` for one without
    a value.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _refuse_control_characters(self)
        wrong = [name for name in self.environment if not _VARIABLE.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"environment.{wrong[0]} is no name of a variable; use letters, digits and _"
            )
        if self.warn_seconds >= 60 * self.timeout_minutes:
            raise ValueError(
                f"warn_seconds={self.warn_seconds} leaves nothing of timeout_minutes="
                f"{self.timeout_minutes}; give the job more time, or warn later"
            )
        if 0 < self.gpus_per_node < self.processes_per_node:
            raise ValueError(
                f"processes_per_node={self.processes_per_node} are more than gpus_per_node="
                f"{self.gpus_per_node}; one process for every GPU"
            )
        odd = [name for name in self.sbatch if not re.fullmatch("[a-z][a-z0-9-]*", name)]
        if odd:
            raise ValueError(f"sbatch.{odd[0]!r} is not a long sbatch option, such as mail-type")
        ours = sorted(set(self.sbatch) & _OURS)
        if ours:
            raise ValueError(f"sbatch.{ours[0]} is for the launcher to say; {_OURS_REMEDY}")
        if self.scheduler == "local":
            default = type(self).model_construct(scheduler="local")
            for name in sorted(set(type(self).model_fields) - _LOCAL):
                if getattr(self, name) != getattr(default, name):
                    raise ValueError(f"{name} means nothing with scheduler: local; leave it out")
        return self

    def exports(self) -> Mapping[str, str]:
        """Environment variables that a job's processes begin with."""
        network = self.network_interface
        # NCCL takes a name for a prefix; gloo wants it whole. Both know a list with commas.
        interfaces = {"GLOO_SOCKET_IFNAME": network, "NCCL_SOCKET_IFNAME": network}
        return {**(interfaces if network else {}), **self.environment}

    def setup_lines(self) -> list[str]:
        """Bash, before the processes start; calls `must CODE LINE` after each line that may
        fail.
        """
        modules = [f"module load {shlex.quote(module)}" for module in self.modules]
        lines = []
        for line in (*modules, *self.setup):
            lines += [line, f"must $? {shlex.quote(line)}"]
        return lines + [
            f"export {name}={shlex.quote(text)}" for name, text in self.exports().items()
        ]

    def srun_words(self) -> list[str]:
        """What stands between srun and Python: its options, and a container."""
        words, box = list(self.srun), self.container
        if not box.image:
            return words
        # submitit's words begin with the interpreter of this machine; the container has its own.
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
    script; `setup` is lines of bash, and the values of `environment` are quoted there.
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
            raise ValueError(f"{name}={texts[name]} holds a %; leave it out")
    if any("\0" in text for text in (*profile.setup, *profile.environment.values())):
        raise ValueError("setup and environment hold no NUL characters; leave them out")


def read_cluster(name: str) -> ClusterConfig:
    """The word `local`, or a profile's YAML file.

    Raises:
        UserError: The file is missing or does not validate.
    """
    if name == "local":
        return ClusterConfig(scheduler="local")
    file = Path(name)
    if not file.is_file():
        raise UserError(
            f"no cluster profile at {name}", "write one (launch/clusters has examples), or local"
        )
    # Not through OmegaConf: `${NAME}` in a line of bash is bash's.
    return validate(ClusterConfig, read_yaml(file), name)
