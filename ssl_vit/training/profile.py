"""`--profile`: how a few steps spend their time, measured by torch's profiler."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from ssl_vit.files import OptionalWrites

_FIRST, _COUNT, _ROWS = 3, 3, 30


class StepProfile:
    """Records the third to the fifth step after a start, because the first ones are slower than
    usual.

    Writes `step_….json.gz`, for https://ui.perfetto.dev or chrome://tracing, and `step_….txt` with
    the slowest operations.

    Args:
        folder: `profile/` of the run folder.
        start_step: Number of steps already made.
        device: Device whose time is measured.
    """

    def __init__(self, folder: Path, start_step: int, device: torch.device) -> None:
        self.folder, self._made, self.device = folder, start_step, device
        self._written = False
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages are for its developers
        self._profiler: Any = torch.profiler.profile(
            schedule=torch.profiler.schedule(
                wait=_FIRST - 2, warmup=1, active=_COUNT, repeat=1, skip_first=0
            ),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def step(self) -> None:
        """Note the end of a step."""
        self._made += 1
        self._profiler.step()

    def close(self) -> None:
        """Stop; what was recorded so far is written."""
        self._profiler.stop()
        if not self._written:
            last = _FIRST + _COUNT - 1
            print(f"no profile: the run ended before its step {last}", file=sys.stderr)

    def _write(self, profiler: Any) -> None:
        stem = self.folder / f"step_{self._made:08d}"
        self._written = True
        key = f"self_{self.device.type}_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=_ROWS)
        with OptionalWrites(
            f"the profile to {self.folder}", "Training continues without it"
        ).attempt():
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(f"{stem}.json.gz")
            Path(f"{stem}.txt").write_text(table + "\n")
            words = f"profile of {_COUNT} steps: {stem}.txt and .json.gz"
            print(words, file=sys.stderr, flush=True)
