"""Disk space of a run. torch, which counts parameters, is imported only when needed."""

from dataclasses import dataclass
from importlib.util import find_spec

from ssl_vit.cost.network import FLOAT32, Parameters
from ssl_vit.run.config import RunConfig


@dataclass(frozen=True)
class Disk:
    """Disk space of a run in bytes, all ranks together."""

    checkpoint: int
    """Size of one resumable checkpoint: weights and two moments."""
    num_checkpoints: int
    export: int
    num_exports: int

    @property
    def total(self) -> int:
        """Total size at the end."""
        return self.num_checkpoints * self.checkpoint + self.num_exports * self.export


def disk_of(config: RunConfig, total_steps: int, parameters: Parameters) -> Disk:
    """Disk space of a run of ``total_steps`` steps."""
    kept, every = config.checkpoint.keep_last, config.checkpoint.keep_every_steps
    if every:
        kept += total_steps // every
    return Disk(
        checkpoint=FLOAT32 * (3 * parameters.trained + parameters.frozen),
        num_checkpoints=kept,
        export=FLOAT32 * parameters.exported,
        # At least one, even if the number of steps follows from minutes and is not known yet.
        num_exports=max(1, -(-total_steps // config.export.every_steps)),
    )


def expected_disk(config: RunConfig, total_steps: int) -> Disk | None:
    """Disk space of a run; None if torch, which counts its parameters, is not installed, as on a
    login node whose jobs run in a container.
    """
    if find_spec("torch") is None:
        return None
    from ssl_vit.cost.counting import count_parameters

    parameters = count_parameters(config.objective, config.backbone, config.optimizer.freeze_units)
    return disk_of(config, total_steps, parameters)
