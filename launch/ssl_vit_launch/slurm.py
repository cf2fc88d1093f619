"""Queries to SLURM about jobs, partitions and nodes, through its commands.

`scontrol` remembers a job for some minutes after its end (MinJobAge); after that only `sacct`
does, which needs accounting. Job ids restart at 1 when a cluster is set up again, so a job counts
as ours only if its batch script is in our folder.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass

from ssl_vit.errors import UserError

_TIMEOUT_SECONDS = 60.0
UNKNOWN = "UNKNOWN"
"""State of a job whose scheduler is not responding."""
ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}


@dataclass(frozen=True)
class JobState:
    """State of a job according to its scheduler."""

    state: str
    """SLURM's name of the state, such as PENDING."""
    reason: str = ""
    """SLURM's name of the reason that it is waiting or ended; empty if there is none."""
    nodes: str = ""
    """SLURM's list of the nodes it runs on; empty if it is not running."""

    @property
    def is_over(self) -> bool:
        """Whether it will never run again."""
        return self.state in ENDED


def has_slurm() -> bool:
    """Whether SLURM's commands are on PATH."""
    return shutil.which("sbatch") is not None


def is_responding() -> bool:
    """Whether SLURM's controller responds."""
    return has_slurm() and ask("scontrol", "ping") is not None


def has_accounting() -> bool:
    """Whether `sacct` remembers jobs here."""
    return ask("sacct", "-n", "-X") is not None


def ask(*command: str) -> str | None:
    """Output of a command; None if it is missing or fails."""
    return _ask(*command)[0]


def _ask(*command: str) -> tuple[str | None, str]:
    """As :func:`ask`, with the error message of a command that failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return (done.stdout, "") if done.returncode == 0 else (None, done.stderr)


def find_job(job: str, folder: str, since: float) -> JobState | None:
    """Current state of a job; None if SLURM has forgotten it, or is not installed here.

    Args:
        job: Its id.
        folder: Folder of its batch script.
        since: Time when it was queued, in seconds since 1970.
    """
    if not job or not has_slurm():
        return None
    text, complaint = _ask("scontrol", "show", "job", job)
    if text is not None:
        fields = _fields(text)
        # The id may belong to another job by now.
        if fields.get("Command", "").startswith(f"{folder}/"):
            reason, nodes = fields.get("Reason", ""), fields.get("NodeList", "")
            return JobState(
                fields["JobState"],
                "" if reason == "None" else reason,
                "" if nodes == "(null)" else nodes,
            )
    elif "Invalid job id" not in complaint:
        return JobState(UNKNOWN, "SLURM is not responding")
    return _from_accounting(job, folder, since)


def _from_accounting(job: str, folder: str, since: float) -> JobState | None:
    """The last state of a job that `sacct` knows."""
    days = int((time.time() - since) / 86400) + 1
    text = ask(
        # With duplicates: requeued jobs have several lines, and ids may be reused.
        *("sacct", "-X", "-D", "-n", "-P", "-j", job, "-S", f"now-{days}days"),
        *("-o", "State,NodeList,SubmitLine"),
    )
    found = None
    for line in (text or "").splitlines():
        state, nodes, command = line.split("|", 2)
        if f"{folder}/" in command:
            found = JobState(state.split()[0], "", "" if nodes == "None assigned" else nodes)
    return found


def _fields(text: str) -> dict[str, str]:
    """Fields of `scontrol show`: words `Key=value`, and lines with a single key whose value may
    contain spaces.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if (whole := re.match(r"(Command|StdOut|StdErr|WorkDir)=(.*)$", line)) is not None:
            found[whole[1]] = whole[2]
            continue
        for word in line.split():
            key, equals, value = word.partition("=")
            if equals:
                found.setdefault(key, value)
    return found


@dataclass(frozen=True)
class Partition:
    """Limits of a partition; 0: none, or unknown."""

    name: str
    state: str
    max_minutes: int
    max_nodes: int
    total_nodes: int
    most_cpus: int
    """CPU cores of its largest node."""
    most_memory_mb: int
    most_gpus: int


def find_partitions(names: str) -> list[Partition]:
    """Partitions by name; the cluster's default if no name is given.

    Args:
        names: As for sbatch, separated by commas.

    Raises:
        UserError: The partition does not exist (lists those that do), or SLURM does not respond.
    """
    text = ask("scontrol", "show", "partition", "--oneliner")
    if text is None:
        raise UserError(
            "scontrol is not responding, so the cluster's limits cannot be checked",
            "try  scontrol ping;  --dry-run works without it",
        )
    known = {fields["PartitionName"]: fields for fields in map(_fields, text.splitlines())}
    default = next((key for key, each in known.items() if each.get("Default") == "YES"), "")
    wanted = [name for name in (names or default).split(",") if name]
    missing = next((name for name in wanted if name not in known), None)
    if missing or not wanted:
        problem = f"no partition named '{missing}'" if missing else "there is no default partition"
        names = ", ".join(sorted(known)) or "none (SLURM lists no partition)"
        raise UserError(problem, f"set partition to one of: {names}")
    return [_read_partition(name, known[name]) for name in wanted]


def _read_partition(name: str, fields: dict[str, str]) -> Partition:
    cpus, memory, gpus = _largest_node(name)
    return Partition(
        name=name,
        state=fields.get("State", "UP"),
        max_minutes=parse_minutes(fields.get("MaxTime", "UNLIMITED")),
        max_nodes=_number(fields.get("MaxNodes", "UNLIMITED")),
        total_nodes=_number(fields.get("TotalNodes", "0")),
        most_cpus=cpus,
        most_memory_mb=memory,
        most_gpus=gpus,
    )


def _largest_node(partition: str) -> tuple[int, int, int]:
    """Largest numbers of CPUs, MB of memory and GPUs among the nodes of a partition."""
    text = ask("sinfo", "-h", "-N", "-p", partition, "-O", "CPUs:30,Memory:30,Gres:200") or ""
    rows = [line.split(maxsplit=2) for line in text.splitlines()]
    if not rows:
        return 0, 0, 0
    return (
        max(_number(row[0]) for row in rows),
        max(_number(row[1]) for row in rows),
        max(count_gpus(row[2]) if len(row) > 2 else 0 for row in rows),
    )


def count_gpus(gres: str) -> int:
    """Number of GPUs in SLURM's list of resources, such as `gpu:a100:4(S:0-1),nvme:1`."""
    counts = re.findall(r"(?:^|,)gpu(?::[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9_.-]*)?:(\d+)", gres)
    return sum(map(int, counts))


def parse_minutes(text: str) -> int:
    """Minutes in SLURM's `[days-]hours:minutes:seconds`; 0 for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return 0
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def end_jobs(*jobs: str) -> None:
    """Cancel jobs.

    Raises:
        UserError: scancel fails; quotes its message.
    """
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"scancel {' '.join(jobs)} failed: {done.stderr.strip()}", "try it manually"
        )


def address_of(node: str) -> str:
    """Network address of a node.

    Raises:
        UserError: Neither the name service nor SLURM knows one.
    """
    fields = _fields(ask("scontrol", "show", "node", node) or "")
    for name in (node, fields.get("NodeAddr"), fields.get("NodeHostName")):
        if name:
            with contextlib.suppress(OSError):
                return socket.gethostbyname(name)
    raise UserError(
        f"{os.uname().nodename} cannot resolve the name of node {node}",
        "ask your administrators for name resolution between nodes",
    )
