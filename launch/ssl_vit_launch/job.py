"""What runs inside a job. Its payload is the run folder's path; everything else is read from there.

submitit's own answer to a signal is to requeue at once, from the first process, in the middle of a
step. The loop's `Preemption` stands before it: all processes save, and then the first one hands the
signal back. The others leave without a result, because a result would tell submitit that the job
is done; so does a process that fails, which may be an echo of a failed node.
"""

import contextlib
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

EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code of a first process that was told to end before the loop began."""


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training job, pickled by submitit.

    Args:
        run: The run folder, on a file system that the nodes share.
    """

    run: str

    def __call__(self) -> NoReturn:
        """Join the other processes of the job and train; ends the process."""
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
        """What submitit queues again after a signal: the same folder, resumed."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def join(run: Path, environment: "submitit.JobEnvironment") -> None:
    """Set what a process group asks for, from SLURM's variables; processes that are one too many
    end here.
    """
    import submitit

    from ssl_vit_launch.slurm import address_of

    os.environ["MASTER_PORT"] = meeting_port(environment.job_id)
    submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    nodes, names = environment.num_nodes, environment.hostnames
    # A single machine's own name need not resolve.
    os.environ["MASTER_ADDR"] = "127.0.0.1" if nodes == 1 else address_of(names[0])
    per_node = environment.num_tasks // nodes
    taken = usable_nodes(nodes, per_node, RunFolder(run).read_config().data.lanes)
    if environment.global_rank >= taken * per_node:
        print(f"data.lanes divides over {taken} nodes and not over {nodes}: not needed here")
        leave(0)
    os.environ["WORLD_SIZE"] = str(taken * per_node)
    # submitit would tell of each; it comes with every signal of SLURM's, and means nothing.
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def _quieten_submitit() -> None:
    """It tells everything twice where both streams go into one file."""
    logger = logging.getLogger("submitit")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers[1:]:
        logger.removeHandler(handler)


def meeting_port(job: str) -> str:
    """A port that all processes of a job know, another one at each of its starts: somebody else's
    process may have had the last one.
    """
    # Below those that Linux gives to outgoing connections.
    start = f"{job} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return str(random.Random(start).randint(15_000, 32_000))


def usable_nodes(nodes: int, per_node: int, lanes: int) -> int:
    """The most of the nodes whose processes divide the lanes; all where none do.

    Args:
        nodes: That the job was given; fewer than asked for where some have failed.
        per_node: Processes of each.
        lanes: ``data.lanes``.
    """
    counts = range(nodes, 0, -1)
    return next((count for count in counts if lanes % (count * per_node) == 0), nodes)


def run_process(
    run: Path, job: str, nodes: str, join_group: Callable[[], None] = lambda: None
) -> NoReturn:
    """Train as one process of a job, note what happens to it, and end.

    Args:
        run: The run folder.
        job: The scheduler's id of the job.
        nodes: Names of the machines, with spaces between them.
        join_group: Sets what a process group asks for, where that is not set yet.
    """
    history, watch = history_of(run), None
    rank = int(os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or 0)
    try:
        join_group()
        processes = read_processes()
        # Who queued it writes the id a moment later, when we may have begun.
        submission = last_submission(run).model_copy(update={"job": job})
        _note_signals(run, job, submission.cluster, processes.is_first)
        if processes.is_first:
            _begin(run, submission, job, nodes)
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
        with contextlib.suppress(OSError, UserError):  # of the run folder, perhaps
            submission = last_submission(run).model_copy(update={"job": job})
            submission.refusal.write_text(f"{error.problem}\n{error.remedy}\n")
        leave(2)
    except Exception as error:
        _fail(history, job, rank, error)
    if watch is not None:
        watch.finish()
    if processes.is_first:
        history.add("completed", job, step=newest_step(run))
    leave(0)


def _fail(history: History, job: str, rank: int, error: Exception) -> NoReturn:
    """Note an error of the program, and end."""
    _ignore_signals()
    traceback.print_exception(error)
    line = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
    history.add("failed", job, rank, text=line[:500])
    leave(1)


def _begin(run: Path, submission: Submission, job: str, nodes: str) -> None:
    """Note the start, and whether there was progress since the one before."""
    history, step = history_of(run), newest_step(run)
    earlier = [event for event in history.read() if event.kind == "started"]
    if not earlier or step > earlier[-1].step:
        submission.crash_count.unlink(missing_ok=True)
    history.add("started", job, step=step, nodes=len(nodes.split()), text=nodes)
    if earlier:
        why = restarts(events_of(run))[-1].why
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        print(
            f"{when}: job {job}, start number {len(earlier) + 1}, from update {step:,}; before it: "
            f"{why}",
            flush=True,
        )


def newest_step(run: Path) -> int:
    """Updates in the newest checkpoint; 0 where there is none."""
    newest = newest_checkpoint(RunFolder(run).checkpoints)
    return 0 if newest is None else step_of(newest)


def _note_signals(run: Path, job: str, cluster: ClusterConfig, is_first: bool) -> None:
    """Stand between the loop, which has saved when it calls, and submitit's handlers; and answer
    signals that come before the loop.
    """
    if not is_first:
        # Until the loop takes them: to leave before the others have met would make them wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return
    heard: list[int] = []
    began = time.monotonic()
    # SLURM looks twice a minute, and submitit took a moment before we began.
    most_seconds = 60 * cluster.timeout_minutes - cluster.warn_seconds - 90
    if cluster.scheduler == "local" or most_seconds < 0:
        most_seconds = math.inf

    def noting(before: object) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if heard:
                return  # a job that is being requeued is sent a SIGTERM too
            heard.append(number)
            name = signal.Signals(number).name
            if time.monotonic() - began > most_seconds:
                name += ", the time limit"
            history_of(run).add("stopped", job, step=newest_step(run), text=name)
            if number == signal.SIGTERM and frame is not None:
                # Not the loop's, which has no frame to give: nothing is saved. srun sends the same
                # when another rank has failed, and that must count as a crash.
                leave(EXIT_TERMINATED)
            if callable(before):
                try:
                    before(number, frame)  # submitit requeues and ends the process
                except Exception as error:  # no scontrol in a container: the batch script has it
                    print(f"not requeued from here: {error}", file=sys.stderr)
            leave(EXIT_SAVED)

        return handle

    for number in _SIGNALS:
        signal.signal(number, noting(signal.getsignal(number)))


def _ignore_signals() -> None:
    """A process that fails is not to be taken for one that was asked to stop: srun tells all to end
    when one has failed.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def use_local_cache(cluster: ClusterConfig) -> None:
    """Keep remote shards where the profile says, on this node.

    Raises:
        UserError: A variable in it is not set here.
    """
    if not cluster.local_cache:
        return
    folder = os.path.expandvars(cluster.local_cache)
    if "$" in folder:
        raise UserError(
            f"local_cache={folder}: a variable in it is not set on {os.uname().nodename}",
            "name another folder in the cluster profile",
        )
    os.environ["SSL_VIT_CACHE"] = folder


def _train(run: Path, submission: Submission, job: str, processes: Processes) -> None:
    """Returns when the run is complete; ends the process when it was asked to stop."""
    from ssl_vit.run.machine import find_machine
    from ssl_vit.run.pretrain import prepare, start

    cluster = submission.cluster
    use_local_cache(cluster)
    prepared = prepare(str(RunFolder(run).config), run, [], is_smoke=False)
    if cluster.gpus_per_node and prepared.config.engine.device == "auto":
        # `auto` would take the CPU here and wait for ever for ranks on GPUs.
        find_machine("cuda", processes)
    if start(prepared, submission.profile):
        if not processes.is_first:
            # No bad exit: srun would end the first process, which may be asking for the requeue.
            leave(0)
        # Asked through another process only; nobody has noted it yet.
        history_of(run).add("stopped", job, step=newest_step(run), text="a signal")
        leave(EXIT_SAVED)


if __name__ == "__main__":  # as ssl_vit_launch.local starts it: RUN JOB
    run_process(Path(sys.argv[1]), sys.argv[2], os.uname().nodename)
