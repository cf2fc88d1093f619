"""Faults for the processes of a job: slow steps, and a crash at one of them.

Python imports this file if its folder is in PYTHONPATH; it does nothing in processes outside of a
job. SSL_VIT_TEST_PAUSE: seconds before each step. SSL_VIT_TEST_CRASH: the step at which the last
rank crashes, counted from 1.
"""

import os
import sys
import time


def inject_faults() -> None:
    from ssl_vit.run import pretrain

    pause = float(os.environ.get("SSL_VIT_TEST_PAUSE", "0"))
    crash = int(os.environ.get("SSL_VIT_TEST_CRASH", "0"))
    inner = pretrain._train

    def train(prepared, preemption, profile):
        from ssl_vit.training.trainer import Trainer

        inner_step = Trainer._train_step

        def step_slowly(self, step):
            time.sleep(pause)
            last = prepared.processes.world_size - 1
            if step + 1 == crash and prepared.processes.rank == last:
                raise RuntimeError(f"a test's fault at step {crash}")
            return inner_step(self, step)

        Trainer._train_step = step_slowly
        return inner(prepared, preemption, profile)

    pretrain._train = train


if "submitit.core._submit" in sys.orig_argv or "ssl_vit_launch.job" in sys.orig_argv:
    inject_faults()
