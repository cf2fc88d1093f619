"""The processes of a job. Their only input is the run folder's path.

On a signal, submitit would requeue at once, from the first process, in the middle of a step. The
training loop's `Preemption` precedes it: all processes save, then the first one passes the signal
on. The others leave without a result, because a result would tell submitit that the job is done; so
does a process that fails, possibly as a consequence of a failed node.
"""

import logging
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ssl_vit.distributed import Processes, leave, read_processes
from ssl_vit.errors import UserError, disk_error
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.checkpoint import newest_checkpoint, step_of
from ssl_vit.training.preemption import EXIT_SAVED
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.evaluations import ExportWatch
from ssl_vit_launch.history import History, restarts
from ssl_vit_launch.submission import Submission, events_of, history_of, last_submission

if TYPE_CHECKING:
    import submitit

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

EXIT_REFUSED = 2
"""Exit code of a process that found a user's mistake, which another start would repeat."""

EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code of a first process that got a SIGTERM before training started."""


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training job, pickled by submitit.

    Args:
        run: Run folder, on a file system shared by all nodes.
    """

    run: str

    def __call__(self) -> NoReturn:
        """Join the other processes of the job and train; never returns."""
        import submitit

        _quieten_submitit()
        environment = submitit.JobEnvironment()
        run_process(
            Path(self.run),
            environment.job_id,
            " ".join(environment.hostnames),
            lambda: join(Path(self.run), environment),
        )

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """The payload that submitit requeues after a signal: the same run, resumed."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def join(run: Path, environment: "submitit.JobEnvironment") -> None:
    """Set the environment variables of a process group from SLURM's; processes on nodes that are
    not needed end here.
    """
    import submitit

    from ssl_vit_launch.slurm import address_of

    os.environ["MASTER_PORT"] = rendezvous_port(environment.job_id)
    submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    nodes, names = environment.num_nodes, environment.hostnames
    # A single node's own name may not resolve.
    os.environ["MASTER_ADDR"] = "127.0.0.1" if nodes == 1 else address_of(names[0])
    per_node = environment.num_tasks // nodes
    used = usable_nodes(nodes, per_node, RunFolder(run).read_config().data.lanes)
    if environment.global_rank >= used * per_node:
        print(f"data.lanes divides over {used} of {nodes} nodes, but not over all: not used here")
        leave(0)
    os.environ["WORLD_SIZE"] = str(used * per_node)
    # submitit would log each SIGCONT; SLURM sends one along with every signal.
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def _quieten_submitit() -> None:
    """Keep submitit from logging twice where both streams go into one file."""
    logger = logging.getLogger("submitit")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers[1:]:
        logger.removeHandler(handler)


def rendezvous_port(job: str) -> str:
    """A port that all processes of a job derive, a different one for each start, in case another
    program took the last one.
    """
    # Below the range that Linux uses for outgoing connections.
    start = f"{job} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return str(random.Random(start).randint(15_000, 32_000))


def usable_nodes(nodes: int, per_node: int, lanes: int) -> int:
    """The largest number of nodes whose processes divide the lanes; all nodes if none does.

    Args:
        nodes: Number allocated to the job; fewer than asked for after some have failed.
        per_node: Processes per node.
        lanes: ``data.lanes``.
    """
    counts = range(nodes, 0, -1)
    return next((count for count in counts if lanes % (count * per_node) == 0), nodes)


def run_process(
    run: Path, job: str, nodes: str, join_group: Callable[[], None] = lambda: None
) -> NoReturn:
    """Train as one process of a job, record what happens to it, and end.

    Args:
        run: The run folder.
        job: The scheduler's job id.
        nodes: Names of the nodes, separated by spaces.
        join_group: Sets the environment variables of a process group if they are not set yet.
    """
    history, watch = history_of(run), None
    rank = int(os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or 0)
    try:
        join_group()
        processes = read_processes()
        # The submitting command writes the id later than this process may start.
        submission = last_submission(run).model_copy(update={"job": job})
        _handle_signals(run, job, submission.cluster, processes.is_first)
        if processes.is_first:
            _record_start(run, job, nodes)
            if submission.at_exports and submission.cluster.scheduler == "slurm":
                watch = ExportWatch(submission)
                watch.start()
        _train(run, submission, job, processes)
    except (UserError, OSError) as problem:
        error = problem if isinstance(problem, UserError) else disk_error(problem)
        if error is None:
            _fail(history, job, rank, problem)
        _ignore_signals()
        print(error.two_lines, file=sys.stderr)
        if error.may_pass:
            history.add("failed", job, rank, text=error.problem)
            leave(1)
        history.add("refused", job, rank, text=error.problem)
        leave(EXIT_REFUSED)
    except Exception as error:
        _fail(history, job, rank, error)
    if watch is not None:
        watch.finish()
    if processes.is_first:
        history.add("completed", job, step=newest_step(run))
    leave(0)


def _fail(history: History, job: str, rank: int, error: Exception) -> NoReturn:
    """Record an error of the program, and end."""
    _ignore_signals()
    traceback.print_exception(error)
    line = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
    history.add("failed", job, rank, text=line[:500])
    leave(1)


def _record_start(run: Path, job: str, nodes: str) -> None:
    """Record the start, and report why the previous one ended."""
    step = newest_step(run)
    earlier = [event for event in events_of(run) if event.kind == "started"]
    history_of(run).add("started", job, step=step, nodes=len(nodes.split()), text=nodes)
    if earlier:
        why = restarts(events_of(run))[-1].why
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        print(
            f"{when}: job {job}, start {len(earlier) + 1}, from step {step:,}; "
            f"previous start: {why}",
            flush=True,
        )


def newest_step(run: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    newest = newest_checkpoint(RunFolder(run).checkpoints)
    return 0 if newest is None else step_of(newest)


def _handle_signals(run: Path, job: str, cluster: ClusterConfig, is_first: bool) -> None:
    """Install handlers between the training loop, which calls them after saving, and submitit's;
    they also handle signals that arrive before the loop.
    """
    if not is_first:
        # Until the loop handles them: if this process left before all have joined, the others
        # would wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return
    received: list[int] = []
    began = time.monotonic()
    # SLURM checks time limits twice a minute, and submitit started a moment before this process.
    limit_seconds = 60 * cluster.timeout_minutes - cluster.warn_seconds - 90
    if cluster.scheduler == "local" or limit_seconds < 0:
        limit_seconds = math.inf

    def recording(previous: object) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if received:
                return  # a job that is being requeued also gets a SIGTERM
            received.append(number)
            name = signal.Signals(number).name
            if time.monotonic() - began > limit_seconds:
                name += ", the time limit"
            history_of(run).add("stopped", job, step=newest_step(run), text=name)
            if number == signal.SIGTERM and frame is not None:
                # Not from the loop, which passes no frame: nothing was saved. srun also sends a
                # SIGTERM when another rank has failed, and that must count as a crash.
                leave(EXIT_TERMINATED)
            if callable(previous):
                try:
                    previous(number, frame)  # submitit requeues and ends the process
                except Exception as error:  # no scontrol in a container; the batch script requeues
                    print(f"the batch script will requeue the job: {error}", file=sys.stderr)
            leave(EXIT_SAVED)

        return handle

    for number in _SIGNALS:
        signal.signal(number, recording(signal.getsignal(number)))


def _ignore_signals() -> None:
    """Keep a process that fails from looking like one that was asked to stop: srun sends a SIGTERM
    to all when one has failed.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def use_local_cache(cluster: ClusterConfig) -> None:
    """Cache remote shards in the profile's folder on this node.

    Raises:
        UserError: A variable in its path is not set on this node.
    """
    if not cluster.local_cache:
        return
    folder = os.path.expandvars(cluster.local_cache)
    if "$" in folder:
        raise UserError(
            f"local_cache={folder}: a variable in it is not set on {os.uname().nodename}",
            "use another folder in the cluster profile",
        )
    os.environ["SSL_VIT_CACHE"] = folder


def _train(run: Path, submission: Submission, job: str, processes: Processes) -> None:
    """Train; returns when the run is complete, and ends the process if it was asked to stop."""
    from ssl_vit.run.machine import find_machine
    from ssl_vit.run.pretrain import prepare, start

    cluster = submission.cluster
    use_local_cache(cluster)
    prepared = prepare(str(RunFolder(run).config), run, [], is_smoke=False)
    if cluster.gpus_per_node and prepared.config.engine.device == "auto":
        # `auto` would choose the CPU here and wait forever for ranks on GPUs.
        find_machine("cuda", processes)
    if start(prepared, submission.profile):
        if not processes.is_first:
            # Exit code 0: otherwise srun would end the first process while it asks for the requeue.
            leave(0)
        # The signal went to another process only, so it is not recorded yet.
        history_of(run).add("stopped", job, step=newest_step(run), text="a signal")
        leave(EXIT_SAVED)


if __name__ == "__main__":  # started by ssl_vit_launch.local with: RUN JOB
    run_process(Path(sys.argv[1]), sys.argv[2], os.uname().nodename)
