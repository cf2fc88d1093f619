"""The batch script of a job: submitit's, with what comes before and after its srun."""

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.training.preemption import EXIT_SAVED
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.submission import Submission

# Of submitit, which otherwise gives up after so many time limits: a run has as many as it needs.
_MANY = 1_000_000


def batch_parameters(submission: Submission) -> dict[str, Any]:
    """submitit's parameters (of its `SlurmExecutor`) for a training job."""
    cluster, nodes, least = submission.cluster, submission.nodes, submission.min_nodes
    per_node, cpus = cluster.processes_per_node, cluster.cpus_per_process
    if least == nodes:
        layout = {"ntasks_per_node": per_node, "cpus_per_task": cpus}
    else:
        # Told of tasks, sbatch would count those of the least nodes, and never give more. So to it
        # a node is one task, and srun makes the processes.
        layout = {"cpus_per_task": per_node * cpus}
    # The first because a process that dies would leave the others waiting for it; block, because
    # ranks of a machine follow each other; the last because since SLURM 22.05 srun does not take
    # over what sbatch was told of cores.
    words = ["--kill-on-bad-exit=1", f"--ntasks-per-node={per_node}", "--distribution=block"]
    words.append(f"--cpus-per-task={cpus}")
    more: dict[str, Any] = {"requeue": True}
    if least != nodes:
        more["nodes"] = f"{least}-{nodes}"
    return {
        **_resources(cluster, submission.title, more),
        **layout,
        "nodes": nodes,
        "signal_delay_s": cluster.warn_seconds,
        "setup": [*setup_lines(submission), *look_lines(submission)],
        "teardown": teardown_lines(submission),
        "srun_args": [*words, *cluster.srun_words()],
    }


def evaluation_parameters(submission: Submission, dependency: str) -> dict[str, Any]:
    """submitit's parameters for a job of one process that begins after another one.

    Args:
        dependency: SLURM's words, such as `afterok:12`; empty: at once.
    """
    cluster, share = submission.cluster, submission.cluster.processes_per_node
    one = cluster.model_copy(
        update={
            "gpus_per_node": min(1, cluster.gpus_per_node),
            "memory_gb": -(-cluster.memory_gb // share),
        }
    )
    # Without this a job whose training failed would wait for ever.
    more: dict[str, Any] = {"kill-on-invalid-dep": "yes"} if dependency else {}
    return {
        **_resources(one, f"{submission.title} eval", more),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.cpus_per_process,
        "setup": setup_lines(submission.model_copy(update={"logs": evaluation_logs(submission)})),
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_process}", *cluster.srun_words()],
        **({"dependency": dependency} if dependency else {}),
    }


def evaluation_logs(submission: Submission) -> str:
    """Folder of batch scripts and logs of a run's evaluations."""
    return f"{submission.logs}/then"


def _resources(cluster: ClusterConfig, name: str, more: dict[str, Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": f"{cluster.memory_gb}GB" if cluster.memory_gb else "",
    }
    return {
        "job_name": name,
        "time": cluster.timeout_minutes,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where keys are enforced
        "additional_parameters": more
        | {name: value for name, value in cluster.sbatch.items() if value is not False},
        **{name: value for name, value in wanted.items() if value},
    }


def setup_lines(submission: Submission) -> list[str]:
    """Bash before srun."""
    lines = [
        f"logs={shlex.quote(submission.logs)}",
        "index=${SLURM_ARRAY_TASK_ID:-0}",
        'rm -f "$logs/refused_$index"',
        "must() {",
        "  [ $1 -eq 0 ] && return",
        '  echo "error: this line of the cluster profile failed: $2"',
        '  echo "fix:   try it on a node; then  ssl-vit launch resubmit"',
        '  touch "$logs/refused_$index"; exit 2',
        "}",
        *submission.cluster.setup_lines(),
        "# Of sbatch's own; srun would not know which to believe.",
        "unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK",
    ]
    if submission.code:
        lines.append("export PYTHONSAFEPATH=1  # else the folder one queues from comes first")
        lines.append(
            f"export PYTHONPATH={shlex.quote(submission.code)}${{PYTHONPATH:+:$PYTHONPATH}}"
        )
    return lines


def look_lines(submission: Submission) -> list[str]:
    """Bash before srun: whether all nodes see the run."""
    if submission.nodes == 1:
        return []
    everywhere = "--nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES"
    look = (
        '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose '
        'a --run folder on a file system that all nodes share"; exit 2; }'
    )
    return [
        f"srun {everywhere} --ntasks-per-node=1 --cpus-per-task=1 sh -c '{look}' \"$logs\"",
        '[ $? -ne 2 ] || { touch "$logs/refused_$index"; exit 2; }',
    ]


def teardown_lines(submission: Submission) -> list[str]:
    """Bash after srun: a crash puts the job back into the queue, a few times."""
    asked = " ".join(map(str, (EXIT_SAVED, 128 + signal.SIGUSR2)))
    return [
        "code=$?",
        "# Complete, or a mistake that another start would repeat:",
        '[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code',
        "# One of an array by its own name: the bare number is all of them to scontrol.",
        "job=$SLURM_JOB_ID",
        '[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
        "# Ended by SLURM, who knows why:",
        'for pause in 5 30 0; do said=$(scontrol show job "$job") && break; sleep $pause; done',
        'echo "$said" | grep -q JobState=RUNNING || exit $code',
        f"# {asked}: asked to stop by a signal. Anything else is a crash; a SIGTERM that found",
        "# nothing to save as well, since srun sends it when another process has failed.",
        f'if [[ " {asked} " != *" $code "* ]]; then',
        '  echo "$code $(date +%s)" >> "$logs/all_crashes_$index" || exit $code',
        '  echo "$code" >> "$logs/crashes_$index" || exit $code',
        "fi",
        '[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")',
        f'[ "${{crashes:-0}}" -ge {submission.cluster.max_crashes} ] || scontrol requeue "$job"',
        "exit $code",
    ]


def batch_text(submission: Submission, count: int = 1) -> str:
    """The whole script, as it would be given to sbatch; needs no SLURM here.

    Args:
        submission: Of the job, or of the first of an array.
        count: How many jobs the array has.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    python = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit"
    parameters = batch_parameters(submission)
    if count > 1:
        parameters["map_count"] = count
    return _make_sbatch_string(
        command=f"{python} {shlex.quote(submission.logs)}", folder=submission.logs, **parameters
    )


def queue_jobs(
    logs: Path, parameters: dict[str, Any], payloads: Sequence[Callable[[], None]]
) -> list[str]:
    """Give payloads to SLURM: one as a job, several as an array; returns their ids.

    Args:
        logs: Folder of batch script and logs.
        parameters: submitit's.
        payloads: What the jobs call; pickled.

    Raises:
        UserError: sbatch refuses; in its own words.
    """
    import submitit

    executor = submitit.SlurmExecutor(str(logs), max_num_timeout=_MANY)
    executor.update_parameters(**parameters)
    with (
        _passing_on_refusals(),
        _outside_of_jobs(),
        executor.batch(allow_implicit_submissions=False),
    ):
        jobs = [executor.submit(payload) for payload in payloads]
    return [job.job_id for job in jobs]


@contextlib.contextmanager
def _passing_on_refusals() -> Iterator[None]:
    from submitit.core.utils import FailedJobError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit shows it too
            yield
    except FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line.split("error: ", 1)[1] for line in lines if "sbatch: error:" in line]
        raise UserError(
            f"sbatch refused: {'; '.join(said) or ' '.join(lines)}",
            "change the cluster profile, or ask your administrators",
        ) from None


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the variables of a job that this process may be part of, which sbatch would pass on."""
    import submitit

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(where)  # which is no job's
        yield
