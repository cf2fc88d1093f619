"""Resumable checkpoints: DeepSpeed's shards, renamed into place when complete on all ranks, pruned.

Where a run starts from, first match wins:

1. the newest complete checkpoint in its own run folder;
2. `init_backbone`: the weights of an export, everything else fresh;
3. scratch.
"""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_vit.errors import UserError

if TYPE_CHECKING:
    from ssl_vit.training.engine import Engine

MANIFEST = "manifest.json"


class Checkpoints:
    """The `checkpoints/` of one run folder.

    Args:
        folder: Created when the first one is saved.
        engine: Saves and loads each rank's part.
        every_steps, keep_last: As in ``CheckpointConfig``.
    """

    def __init__(self, folder: Path, engine: "Engine", every_steps: int, keep_last: int) -> None:
        self.folder, self.engine = folder, engine
        self.every_steps, self.keep_last = every_steps, keep_last

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after ``step`` updates."""
        return step % self.every_steps == 0

    def save(self, step: int) -> None:
        """Write a checkpoint after ``step`` updates; every rank calls it."""
        final = self.folder / f"step_{step:08d}"
        partial = self.folder / f".partial_{step:08d}"
        if self.engine.processes.is_first and partial.exists():
            # Of a run killed while saving; its files could be of other ranks.
            shutil.rmtree(partial)
        self.engine.barrier()
        self.engine.save(partial, {"step": step})
        self.engine.barrier()
        if self.engine.processes.is_first:
            sizes = {
                str(file.relative_to(partial)): file.stat().st_size
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            }
            manifest = {"world_size": self.engine.processes.world_size, "files": sizes}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            self._prune()
        self.engine.barrier()

    def restore(self) -> int:
        """Load the newest checkpoint; returns the updates it has seen, 0 where there is none.

        Raises:
            UserError: It is there and cannot be read.
        """
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return 0
        try:
            return int(self.engine.load(newest)["step"])
        except Exception as error:  # torch, pickle and DeepSpeed each raise their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"cannot read checkpoint {newest}: {reason}", _remedy(self.folder)
            ) from error

    def _prune(self) -> None:
        for old in complete_checkpoints(self.folder)[: -self.keep_last]:
            shutil.rmtree(old)
        for partial in self.folder.glob(".partial_*"):
            shutil.rmtree(partial)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))


def step_of(checkpoint: Path) -> int:
    """Updates a checkpoint (or export) has seen, from its folder's name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, after a look at its files; needs no torch.

    Raises:
        UserError: A file of it is missing or has another size than when it was written.
    """
    complete = complete_checkpoints(folder)
    if not complete:
        return None
    newest = complete[-1]
    for name, size in _read_manifest(newest)["files"].items():
        file = newest / name
        if not file.is_file() or file.stat().st_size != size:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise UserError(
                f"checkpoint file {file} is damaged: {size} bytes were written, found {found}",
                _remedy(folder),
            )
    return newest


def check_world_size(checkpoint: Path, world_size: int, zero_stage: int) -> None:
    """Refuse a number of processes that cannot read this checkpoint.

    Raises:
        UserError: Its optimizer is sharded over another number of processes.
    """
    saved_by = _read_manifest(checkpoint)["world_size"]
    if zero_stage > 0 and saved_by != world_size:
        raise UserError(
            f"{checkpoint} is sharded over {saved_by} processes (engine.zero_stage={zero_stage}), "
            f"this is {world_size}",
            f"go on with {saved_by} processes",
        )


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} has no readable {MANIFEST}: {error}",
            _remedy(checkpoint.parent),
        ) from None


def _remedy(folder: Path) -> str:
    complete = complete_checkpoints(folder)
    before = f"from {complete[-2].name}" if len(complete) > 1 else "from the start"
    return f"delete {complete[-1]} and run the same command again to go on {before}"
