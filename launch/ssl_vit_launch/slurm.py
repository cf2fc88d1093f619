"""What SLURM knows: of a job, of a partition, of a node. Reads its commands' output, and says what
cannot be known where a command is missing.

`scontrol` remembers a job for some minutes after its end (MinJobAge); after that only `sacct`
does, which needs accounting. Job ids begin at 1 again on a cluster that was set up anew, so a job
counts as ours only if its batch script or its working folder is.
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
from ssl_vit_launch.submission import Submission

_PATIENCE = 60.0
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
    """What the scheduler says of a job."""

    state: str
    """SLURM's word, such as PENDING."""
    reason: str = ""
    """Why it waits or ended, SLURM's word; empty where there is none."""
    nodes: str = ""
    """Where it runs, SLURM's list; empty where it does not."""

    @property
    def is_over(self) -> bool:
        """Whether it will never run again."""
        return self.state in ENDED


def has_slurm() -> bool:
    """Whether SLURM's commands are on PATH."""
    return shutil.which("sbatch") is not None


def answers() -> bool:
    """Whether SLURM's controller does."""
    return has_slurm() and ask("scontrol", "ping") is not None


def has_accounting() -> bool:
    """Whether `sacct` remembers jobs here."""
    return ask("sacct", "-n", "-X") is not None


def ask(*command: str) -> str | None:
    """A command's output; None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def find_job(submission: Submission) -> JobState | None:
    """What SLURM says of a job now; None where it has forgotten it, or has no commands here."""
    if not submission.job:
        return None
    text = ask("scontrol", "show", "job", submission.job)
    if text is not None:
        fields = _fields(text)
        # The id may be another's by now.
        if fields.get("Command", "").startswith(submission.logs + "/"):
            reason = fields.get("Reason", "")
            nodes = fields.get("NodeList", "")
            return JobState(
                fields["JobState"],
                "" if reason == "None" else reason,
                "" if nodes == "(null)" else nodes,
            )
    return _from_accounting(submission)


def _from_accounting(submission: Submission) -> JobState | None:
    """Of `sacct`: the last thing that became of the job."""
    text = ask(
        # With duplicates: requeued jobs have several lines, and ids may be others' too.
        *("sacct", "-X", "-D", "-n", "-P", "-j", submission.job),
        *("-S", f"now-{_days(submission)}days", "-o", "State,NodeList,SubmitLine"),
    )
    found = None
    for line in (text or "").splitlines():
        state, nodes, command = line.split("|", 2)
        if submission.logs in command:
            found = JobState(state.split()[0], "", "" if nodes == "None assigned" else nodes)
    return found


def _days(submission: Submission) -> int:
    return int((time.time() - submission.time) / 86400) + 1


def _fields(text: str) -> dict[str, str]:
    """`scontrol show job`: words `Key=value`, and lines that hold one key, whose value may have
    spaces.
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
    """What a partition allows; 0 where there is no limit, or none is known."""

    name: str
    state: str
    max_minutes: int
    max_nodes: int
    total_nodes: int
    most_cpus: int
    """Of its nodes, the largest."""
    most_memory_mb: int
    most_gpus: int


def find_partition(name: str) -> Partition:
    """A partition; the cluster's default where the name is empty.

    Raises:
        UserError: There is none of that name (lists those there are), or SLURM does not answer.
    """
    text = ask("scontrol", "show", "partition", "--oneliner")
    if text is None:
        raise UserError(
            "scontrol does not answer, so there is no telling what the cluster allows",
            "try  scontrol ping;  --dry-run needs no answer",
        )
    known = {fields["PartitionName"]: fields for fields in map(_fields, text.splitlines())}
    default = next((key for key, each in known.items() if each.get("Default") == "YES"), "")
    if (found := known.get(name or default)) is None:
        problem = f"no partition named '{name}'" if name else "the cluster has no default partition"
        raise UserError(problem, f"partition: one of {', '.join(sorted(known)) or 'none is known'}")
    name = name or default
    cpus, memory, gpus = _largest_node(name)
    return Partition(
        name=name,
        state=found.get("State", "UP"),
        max_minutes=parse_minutes(found.get("MaxTime", "UNLIMITED")),
        max_nodes=_number(found.get("MaxNodes", "UNLIMITED")),
        total_nodes=_number(found.get("TotalNodes", "0")),
        most_cpus=cpus,
        most_memory_mb=memory,
        most_gpus=gpus,
    )


def _largest_node(partition: str) -> tuple[int, int, int]:
    """Most CPUs, MB of memory and GPUs of the nodes of a partition."""
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
    """GPUs in SLURM's list of resources, such as `gpu:a100:4(S:0-1),nvme:1`."""
    counts = re.findall(r"(?:^|,)gpu(?::[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9_.-]*)?:(\d+)", gres)
    return sum(map(int, counts))


def parse_minutes(text: str) -> int:
    """Minutes of SLURM's `[days-]hours:minutes:seconds`; 0 where there is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return 0
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def end_job(job: str) -> None:
    """Ask SLURM to end a job.

    Raises:
        UserError: It does not.
    """
    done = subprocess.run(["scancel", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"scancel {job}: {done.stderr.strip()}", "try it by hand")


def address_of(node: str) -> str:
    """An address at which a node's processes can be met.

    Raises:
        UserError: Neither the name service nor SLURM knows one.
    """
    fields = _fields(ask("scontrol", "show", "node", node) or "")
    for name in (node, fields.get("NodeAddr"), fields.get("NodeHostName")):
        if name:
            with contextlib.suppress(OSError):
                return socket.gethostbyname(name)
    raise UserError(
        f"{os.uname().nodename} knows no address of node {node}",
        "ask your administrators for name resolution between nodes",
    )
