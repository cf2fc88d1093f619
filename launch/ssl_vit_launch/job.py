"""What runs inside a job. Its payload is the run folder's path; everything else is read from there.

submitit's own answer to a signal is to requeue at once, from the first process, in the middle of a
step. The loop's `Preemption` stands before it, saves on all processes, and only then calls it; the
others leave without a result, because a result would tell submitit that the job is done.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import submitit

_WAIT_FOR_REQUEUE_SECONDS = 20


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training job, pickled by submitit.

    Args:
        run: The run folder, on a file system that the nodes share.
    """

    run: str

    def __call__(self) -> int:
        """Join the other processes of the job and train; returns 0 when the run is complete."""
        import submitit

        environment = submitit.JobEnvironment()
        submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        if environment.num_nodes == 1:
            # A laptop's own name need not resolve.
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        from ssl_vit.pretrain import prepare, start

        run = Path(self.run)
        code = start(prepare(str(run / "config.yaml"), run, [], is_smoke=False))
        if code:
            # Where a task's bad exit ends the job, leaving now would kill the first one's requeue.
            time.sleep(0 if environment.global_rank == 0 else _WAIT_FOR_REQUEUE_SECONDS)
            # SystemExit is no Exception: submitit writes no result, and the requeued job is
            # awaited.
            raise SystemExit(code)
        return code

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What submitit queues again after a signal: the same folder, resumed."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
