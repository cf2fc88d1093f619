"""What a run leaves on disk; torch, which counts parameters, is imported only when it is asked."""

from dataclasses import dataclass
from importlib.util import find_spec

from ssl_vit.models.cost import FLOAT32, Parameters
from ssl_vit.run.config import RunConfig


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves on disk, all ranks together."""

    checkpoint: int
    """Of one resumable checkpoint: weights and two moments."""
    num_checkpoints: int
    export: int
    num_exports: int

    @property
    def total(self) -> int:
        """At the end."""
        return self.num_checkpoints * self.checkpoint + self.num_exports * self.export


def disk_of(config: RunConfig, total_steps: int, parameters: Parameters) -> Disk:
    """What a run of so many parameters leaves on disk."""
    kept, every = config.checkpoint.keep_last, config.checkpoint.keep_every_steps
    if every:
        kept += total_steps // every
    return Disk(
        checkpoint=FLOAT32 * (3 * parameters.trained + parameters.frozen),
        num_checkpoints=kept,
        export=FLOAT32 * parameters.backbone,
        # One at the end, even of a run whose steps follow from minutes and are not known yet.
        num_exports=max(1, -(-total_steps // config.export.every_steps)),
    )


def expected_disk(config: RunConfig, total_steps: int) -> Disk | None:
    """What a run leaves on disk; None where torch, which counts its parameters, is not installed: a
    login node whose jobs run in a container.
    """
    if find_spec("torch") is None:
        return None
    from ssl_vit.cost.counting import count_parameters

    return disk_of(config, total_steps, count_parameters(config.objective, config.backbone))
