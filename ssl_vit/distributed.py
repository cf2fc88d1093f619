"""This process's place among all. Reads the environment only; the engine starts the process group.

One process needs no launcher; `torchrun`, submitit's jobs and DeepSpeed's launcher set the same
five variables. Bare SLURM tasks do not, and are refused.
"""

import contextlib
import ctypes
import os
import re
import socket
import sys
from dataclasses import dataclass
from typing import Literal, NoReturn

from ssl_vit.errors import UserError

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Processes:
    """This process's place."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def read_processes() -> Processes:
    """This process's place, from RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; a single
    process if they are not set.
    """
    tasks = _number("SLURM_STEP_NUM_TASKS", 1, least=1)
    if "RANK" not in os.environ and tasks > 1:
        raise UserError(
            f"srun started {tasks} processes that do not form a group (RANK is not set)",
            "use  ssl-vit launch submit …,  or srun one torchrun per node",
        )
    world_size = _number("WORLD_SIZE", 1, least=1)
    found = Processes(
        rank=_number("RANK", 0),
        world_size=world_size,
        local_rank=_number("LOCAL_RANK", 0),
        local_world_size=_number("LOCAL_WORLD_SIZE", world_size, least=1),
    )
    if found.rank >= world_size or found.local_rank >= found.local_world_size:
        raise UserError(
            f"RANK={found.rank} of WORLD_SIZE={world_size}, LOCAL_RANK={found.local_rank} of "
            f"LOCAL_WORLD_SIZE={found.local_world_size} are inconsistent: ranks run from 0 to "
            "size - 1",
            "unset them, or start the processes by torchrun",
        )
    return found


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise UserError(
            f"{name}={text} in the environment is not a whole number of at least {least}",
            f"unset {name}",
        )
    return int(text)


def complete_environment() -> None:
    """Set the variables of a process group that no launcher has set: unless all five are there,
    DeepSpeed looks for MPI.
    """
    defaults = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = _free_port()


def local_group(world_size: int) -> list[dict[str, str]]:
    """The variables that make processes of this machine one group: one dictionary per rank."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    common |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def leave(code: int) -> NoReturn:
    """End this process without the interpreter's shutdown, after flushing its output.

    With gloo that shutdown sometimes aborts ("terminate called without an active exception"), even
    after the process group is gone, and a launcher takes a successful run for a crash.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # a full disk; closed by the shell
            stream.flush()
    os._exit(code)


def set_library_environment(device: Literal["cpu", "cuda"]) -> None:
    """Set what training's libraries read when they are imported; call before importing torch."""
    os.environ["DS_ACCELERATOR"] = device
    if device == "cpu":
        compute_beside_workers()


def compute_beside_workers() -> None:
    """Keep torch's CPU threads from slowing data workers; call before importing torch.

    OpenMP's threads spin while they wait for each other. Beside data workers, or on a shared
    machine, that was measured to slow a training step 5 to 15 times; sleeping costs an idle machine
    a quarter at most.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep the large blocks that a training step frees, for the next step to use.

    Otherwise every step requests its activations from the kernel again: on a ViT of 6 × 192, 59,000
    page faults per step instead of 4,000, and a tenth of its time. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)):
        mallopt(option, value)


def cores_here() -> int:
    """Cores this process may run on; a batch system often gives fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
