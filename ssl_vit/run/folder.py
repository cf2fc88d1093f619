"""The run folder, the only thing that commands hand to each other: its paths, and the checks that
keep it from being reused by mistake.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from ssl_vit.config import differences, read_yaml, to_yaml, validate
from ssl_vit.errors import UserError, refuse_control_characters
from ssl_vit.files import replacing
from ssl_vit.foreign import Count, Document, checked, read_json
from ssl_vit.run.config import CONFIG_FILE, RunConfig, may_change_on_resume

_LOCK = ".lock"


class _Ended(Document):
    """What is read of an `ended.json`."""

    step: int = 0


class _Plan(Document):
    """What later starts and other commands read from a `plan.json` (training/plan.py)."""

    micro_batch_size: Count = 0
    micro_batch_found_for: str = ""
    world_size: Count = 0
    total_steps: Count = 0
    measured_images_per_second: Annotated[float, Field(ge=0)] = 0.0


class RunFolder:
    """The paths in a run folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.config = self.root / CONFIG_FILE
        self.plan = self.root / "plan.json"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.bad_samples = self.root / "bad_samples.jsonl"
        self.nonfinite = self.root / "nonfinite.jsonl"
        self.alarms = self.root / "alarms.jsonl"
        self.validations = self.root / "validations.jsonl"
        self.ended = self.root / "ended.json"
        self.hangs = self.root / "hangs"
        self.tensorboard = self.root / "tensorboard"
        self.checkpoints = self.root / "checkpoints"
        self.exports = self.root / "exports"
        self.panels = self.root / "panels"
        self.evals = self.root / "evals"
        self.jobs = self.root / "jobs"
        self.profile = self.root / "profile"
        self.rehearsal = self.root / "rehearsal"

    def read_config(self) -> RunConfig:
        """The config of this folder's run.

        Raises:
            UserError: This is not a run folder, or its config is not valid.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.root} is not a run folder (it has no config.yaml)",
                "check the path; `ssl-vit launch list FOLDER` lists the runs in a folder",
            )
        return validate(RunConfig, read_yaml(self.config), str(self.config))

    def found_micro_batch(self) -> tuple[str, int]:
        """The conditions for which this run determined its micro-batch size, and that size; ("", 0)
        if it has not.
        """
        plan = self._read_plan()
        return plan.micro_batch_found_for, plan.micro_batch_size

    def grouping(self) -> tuple[int, int]:
        """(images per micro-batch, processes) of this folder's latest start; zeros before one."""
        plan = self._read_plan()
        return plan.micro_batch_size, plan.world_size

    def total_steps(self) -> int:
        """Steps of the whole run; 0 before its first start."""
        return self.ended_step() or self._read_plan().total_steps

    def ended_step(self) -> int:
        """Number of steps after which validation ended the run; 0: it did not."""
        try:
            return checked(_Ended, read_json(self.ended, ""), str(self.ended), "").step
        except UserError:
            return 0

    def derived_length(self) -> tuple[int, float]:
        """(steps, measured images/s) derived from minutes; zeros before the rate was measured."""
        plan = self._read_plan()
        return plan.total_steps, plan.measured_images_per_second

    def _read_plan(self) -> _Plan:
        try:
            return checked(_Plan, read_json(self.plan, ""), str(self.plan), "")
        except UserError:
            return _Plan()  # as before the first start; a run whose length needs it is refused

    def check(self, config: RunConfig) -> dict[str, str]:
        """Refuse a folder that is not this run's; return what a resumed run changes.

        Returns:
            Config path → "old → new" for settings that may change on resume. Empty for a new
            folder.

        Raises:
            UserError: The folder holds other files, or a run with another config.
        """
        if not self.check_ours():
            return {}
        changed = differences(self.read_config(), config)
        fixed = [path for path in changed if not may_change_on_resume(path)]
        if fixed:
            was, now = changed[fixed[0]]
            more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
            raise UserError(
                f"{self.root} holds a run with {fixed[0]}={was}, not {now}{more}",
                "use another --run folder, or repeat the command that started this run",
            )
        return {path: f"{was} → {now}" for path, (was, now) in changed.items()}

    def check_ours(self) -> bool:
        """Refuse a folder with anything but a run in it; returns whether there is a run.

        Raises:
            UserError: It holds other files, or cannot be written to.
        """
        refuse_control_characters(
            "the path of --run", str(self.root), "choose another --run folder"
        )
        self._check_writable()
        if not self.root.is_dir() or all(path.name == _LOCK for path in self.root.iterdir()):
            return False
        if not self.config.is_file():
            raise UserError(
                f"{self.root} exists but is not a run folder (it has no config.yaml)",
                "choose another --run folder, or empty this one",
            )
        return True

    def lock(self) -> None:
        """Take the folder for this process until it ends.

        Raises:
            UserError: Another process is training in it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / _LOCK).open("w")
        except OSError as error:
            raise UserError(
                f"cannot write to {self.root}: {error.strerror}", "choose another --run folder"
            ) from None
        self._take(self._lock)

    def refuse_locked(self) -> None:
        """Refuse a folder that a process on this machine is training in.

        Raises:
            UserError: One is.
        """
        with contextlib.suppress(OSError), (self.root / _LOCK).open("r+") as file:
            self._take(file)  # closing it releases the lock

    def _take(self, file: IO[str]) -> None:
        try:
            # lockf, not flock: a data worker inherits an flock and outlives a killed run by
            # seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"another process is training in {self.root}",
                "wait for it, or stop it",
                may_pass=True,  # the lock of a failed machine is released after a while
            ) from None
        except OSError:
            pass  # a file system without locks

    def _check_writable(self) -> None:
        above = (self.root, *self.root.absolute().parents)
        existing = next(path for path in above if path.exists())
        if not existing.is_dir():
            raise UserError(f"{existing} is not a folder", "choose another --run folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{existing} is not writable", "choose another --run folder")

    def write_config(self, config: RunConfig) -> None:
        """Write the complete config, atomically."""
        self.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.config) as partial:
            partial.write_text(to_yaml(config))
