"""What this machine has for a run: its device and its memory. torch is imported only if there is a
GPU.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ssl_vit.cost.network import Precision
from ssl_vit.distributed import Processes, cores_here
from ssl_vit.errors import UserError
from ssl_vit.training.plan import Machine

_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
_CGROUPS = Path("/sys/fs/cgroup")


def plain_machine(processes: Processes) -> Machine:
    """The machine as a CPU with unknown memory, which is enough to find mistakes."""
    cores = max(1, cores_here() // processes.local_world_size)
    return Machine(processes.world_size, cores, "cpu")


def find_machine(requested: Literal["auto", "cpu", "cuda"], processes: Processes) -> Machine:
    """This machine, for a run that is about to start.

    Args:
        requested: As in ``EngineConfig.device``.
        processes: The processes that share it, one per GPU.

    Raises:
        UserError: CUDA was requested but is not available, or there are fewer GPUs than processes.
    """
    plain = plain_machine(processes)
    # Importing torch takes seconds, and is not needed if there is no device file of a GPU.
    if requested != "cpu" and any(Path(node).exists() for node in _GPU_NODES):
        import torch

        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            if count < processes.local_world_size:
                raise UserError(
                    f"{processes.local_world_size} processes on a machine with {count} GPUs",
                    "start one process per GPU, or set engine.device=cpu",
                )
            mine = torch.cuda.get_device_properties(processes.local_rank)
            return Machine(
                plain.world_size,
                plain.cores,
                "cuda",
                mine.total_memory,
                "bfloat16" if torch.version.hip or mine.major >= 8 else "float16",
            )
    if requested == "cuda":
        raise UserError(
            f"engine.device=cuda, but torch finds no GPU on {os.uname().nodename}",
            "set engine.device=cpu; on a cluster, request GPUs, or exclude that node",
            may_pass=True,  # a job may get another node
        )
    share = _host_memory() // processes.local_world_size
    return Machine(plain.world_size, plain.cores, "cpu", share, _fast_on_cpu())


def require_compiler() -> None:
    """Refuse `engine.compile` if torch could not compile.

    Raises:
        UserError: There is no C++ compiler where torch looks for one.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(name):
        raise UserError(
            f"engine.compile=true needs a C++ compiler, but {name} is not installed",
            "install g++ (Debian: apt-get install g++), set $CXX, or leave out engine.compile",
        )


def _fast_on_cpu() -> Precision:
    """bfloat16 if the processor supports it (2 to 3 times faster) and torch may use all of its
    instructions; otherwise float32.
    """
    limits = (
        (os.environ.get("ATEN_CPU_CAPABILITY", ""), r"default|avx2"),
        (
            os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            r"SSE41|AVX2?|AVX2_VNNI(_2)?|AVX512_CORE(_VNNI)?",
        ),
    )
    if any(re.fullmatch(low, limit, re.IGNORECASE) for limit, low in limits):
        return "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else "float32"


def _host_memory() -> int:
    """Bytes that this machine's processes may use now, within a container's limit; 0 if unknown."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    for file in _limit_files():
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits, default=0)


def _limit_files() -> Iterator[Path]:
    """Files that may hold a container's or a batch job's limit: in its own control group and all
    of that group's parents.
    """
    yield _CGROUPS / "memory" / "memory.limit_in_bytes"
    mine = Path("/proc/self/cgroup")
    lines = mine.read_text().splitlines() if mine.is_file() else []
    for path in (line.split(":", 2)[2] for line in lines if line.startswith("0::")):
        group = _CGROUPS / path.lstrip("/")
        yield from (each / "memory.max" for each in (group, *group.parents))
