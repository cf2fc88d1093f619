"""The batch script of a job: submitit's script with our lines before and after its srun."""

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
from ssl_vit_launch.history import line_start
from ssl_vit_launch.submission import Submission

# submitit gives up after this many time limits; a run may need any number of them.
_MAX_TIMEOUTS = 1_000_000


def batch_parameters(submission: Submission, folders: Sequence[Path]) -> dict[str, Any]:
    """Parameters of submitit's `SlurmExecutor` for a training job.

    Args:
        submission: The job's, or that of the first job of an array.
        folders: The submission folder in the run folder of each job.
    """
    cluster, nodes, min_nodes = submission.cluster, submission.nodes, submission.min_nodes
    per_node, cpus = cluster.processes_per_node, cluster.cpus_per_process
    if min_nodes == nodes:
        layout = {"ntasks_per_node": per_node, "cpus_per_task": cpus}
    else:
        # Given a number of tasks, sbatch would derive it from min_nodes and never allocate more.
        # So sbatch sees one task per node, and srun starts the processes.
        layout = {"cpus_per_task": per_node * cpus}
    # kill-on-bad-exit: the other processes would wait for one that died. block: the ranks of a
    # node must be consecutive. cpus-per-task: since SLURM 22.05, srun does not inherit it.
    words = ["--kill-on-bad-exit=1", f"--ntasks-per-node={per_node}", "--distribution=block"]
    words.append(f"--cpus-per-task={cpus}")
    more: dict[str, Any] = {"requeue": True}
    if min_nodes != nodes:
        more["nodes"] = f"{min_nodes}-{nodes}"
    return {
        **_resources(cluster, submission.title, more),
        **layout,
        "nodes": nodes,
        "signal_delay_s": cluster.warn_seconds,
        "setup": [*setup_lines(submission), *start_lines(submission, folders)],
        "teardown": teardown_lines(submission),
        "srun_args": [*words, *cluster.srun_words()],
    }


def evaluation_parameters(submission: Submission, dependency: str) -> dict[str, Any]:
    """Parameters of submitit for a one-process job that starts after another job.

    Args:
        dependency: In SLURM's notation, such as `afterok:12`; empty: start at once.
    """
    cluster, processes = submission.cluster, submission.cluster.processes_per_node
    one = cluster.model_copy(
        update={
            "gpus_per_node": min(1, cluster.gpus_per_node),
            "memory_gb": -(-cluster.memory_gb // processes),
        }
    )
    # Otherwise, after a failed training job, the evaluation would stay pending forever.
    more: dict[str, Any] = {"kill-on-invalid-dep": "yes"} if dependency else {}
    return {
        **_resources(one, f"{submission.title} eval", more),
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.cpus_per_process,
        "setup": setup_lines(submission),
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_process}", *cluster.srun_words()],
        **({"dependency": dependency} if dependency else {}),
    }


def evaluation_logs(submission: Submission) -> str:
    """Folder for the batch scripts and logs of a run's evaluations."""
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
        "wckey": None,  # submitit's default is rejected where keys are enforced
        "additional_parameters": more
        | {name: value for name, value in cluster.sbatch.items() if value is not False},
        **{name: value for name, value in wanted.items() if value},
    }


def setup_lines(submission: Submission) -> list[str]:
    """Bash lines before srun: the profile's own, and the environment."""
    lines = [
        "must() {",
        "  [ $1 -eq 0 ] && return",
        '  echo "error: this line of the cluster profile failed: $2"',
        '  echo "fix:   try it on a node; then  ssl-vit launch resubmit"',
        "  exit 2",
        "}",
        *submission.cluster.setup_lines(),
        "# Set by sbatch; they would contradict srun's own options.",
        "unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK",
    ]
    if submission.code:
        lines.append("export PYTHONSAFEPATH=1  # keeps the submission directory off sys.path")
        lines.append(
            f"export PYTHONPATH={shlex.quote(submission.code)}${{PYTHONPATH:+:$PYTHONPATH}}"
        )
    return lines


def start_lines(submission: Submission, folders: Sequence[Path]) -> list[str]:
    """Bash lines before srun: where this job's history is, and whether every node sees it.

    Args:
        submission: The job's, or that of the first job of an array.
        folders: The submission folder in the run folder of each job.
    """
    refused = line_start("refused")
    return [
        "job_folders=(",
        *(f"  {shlex.quote(str(folder))}" for folder in folders),
        ")",
        "job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}",
        "job_history=$job_folder/history.jsonl",
        "# A job of an array by its own id: to scontrol the bare number is the whole array.",
        "this_job=$SLURM_JOB_ID",
        '[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
        f"refusals() {{ cat \"$job_folder\"/history*.jsonl 2> /dev/null | grep -c '^{refused}'; }}",
        "refusals_before=$(refusals)",
        *_visibility_lines(submission.nodes),
    ]


def _visibility_lines(nodes: int) -> list[str]:
    if nodes == 1:
        return []
    everywhere = "--nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES"
    check = (
        '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose '
        'a --run folder on a file system that all nodes share"; exit 2; }'
    )
    return [
        f"srun {everywhere} --ntasks-per-node=1 --cpus-per-task=1 sh -c '{check}' \"$job_folder\"",
        "[ $? -ne 2 ] || exit 2",
    ]


def teardown_lines(submission: Submission) -> list[str]:
    """Bash lines after srun: requeue the job after a crash, up to `max_crashes` times.

    Crashes are recorded and counted here, because no Python process may be left to do so, and the
    host of a container may have no Python.
    """
    asked = " ".join(map(str, (EXIT_SAVED, 128 + signal.SIGUSR2)))
    return [
        "code=$?",
        "# Complete, or an error that another start would repeat:",
        "[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code",
        "# Ended by SLURM, which handles it:",
        "for pause in 5 30 0; do",
        '  state=$(scontrol show job "$this_job") && break; sleep $pause',
        "done",
        'echo "$state" | grep -q JobState=RUNNING || exit $code',
        f"# {asked}: stopped by a signal. Anything else is a crash, including a SIGTERM before",
        "# training started, since srun sends one when another process has failed.",
        f'if [[ " {asked} " != *" $code "* ]]; then',
        "  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash",
        "  # comes after the events of the processes.",
        '  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"',
        f'  printf \'{line_start("crashed")}, "job": "%s", "time": %s, "code": %s}}\\n\' '
        '"$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code',
        "fi",
        "# Crashes since the last start from a newer checkpoint than the start before it:",
        "crashes=0 reached=-1",
        "while read -r line; do",
        "  case $line in",
        f"    '{line_start('crashed')}'*) crashes=$((crashes + 1)) ;;",
        f"    '{line_start('started')}'*)",
        """      step=${line#*'"step": '}; step=${step%%[!0-9]*}""",
        '      [ -n "$step" ] || continue  # truncated',
        '      [ "$step" -gt "$reached" ] && crashes=0',
        "      reached=$step ;;",
        "  esac",
        'done < "$job_history"',
        f'[ $crashes -ge {submission.cluster.max_crashes} ] || scontrol requeue "$this_job"',
        "exit $code",
    ]


def batch_text(submission: Submission, folders: Sequence[Path]) -> str:
    """The complete batch script that sbatch would get; needs no SLURM here.

    Args:
        submission: The job's, or that of the first job of an array.
        folders: The submission folder in the run folder of each job; several for an array.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    python = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit"
    parameters = batch_parameters(submission, folders)
    if len(folders) > 1:
        parameters["map_count"] = len(folders)
    return _make_sbatch_string(
        command=f"{python} {shlex.quote(submission.logs)}", folder=submission.logs, **parameters
    )


def queue_jobs(
    logs: Path, parameters: dict[str, Any], payloads: Sequence[Callable[[], None]]
) -> list[str]:
    """Submit payloads to SLURM: one as a job, several as an array; returns the job ids.

    Args:
        logs: Folder for the batch script and the logs.
        parameters: Those of submitit's `SlurmExecutor`.
        payloads: Callables for the jobs to run; submitit pickles them.

    Raises:
        UserError: sbatch rejects the job; quotes its message.
    """
    import submitit

    executor = submitit.SlurmExecutor(str(logs), max_num_timeout=_MAX_TIMEOUTS)
    executor.update_parameters(**parameters)
    with (
        _quoting_sbatch_errors(),
        _outside_any_job(),
        executor.batch(allow_implicit_submissions=False),
    ):
        jobs = [executor.submit(payload) for payload in payloads]
    return [job.job_id for job in jobs]


@contextlib.contextmanager
def _quoting_sbatch_errors() -> Iterator[None]:
    from submitit.core.utils import FailedJobError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints it as well
            yield
    except FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line.split("error: ", 1)[1] for line in lines if "sbatch: error:" in line]
        raise UserError(
            f"sbatch rejected the job: {'; '.join(said) or ' '.join(lines)}",
            "change the cluster profile, or ask your administrators",
        ) from None


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of a job that this process may be part of; sbatch would pass them on."""
    import submitit

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(where)  # the cluster's, not the job's
        yield
