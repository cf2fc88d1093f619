"""The whole configuration of a run, composed of the components' configs. Defaults live with the
components.
"""

from pydantic import Field, model_validator

from ssl_vit.config import Config
from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VitConfig
from ssl_vit.monitors.config import MonitorConfig
from ssl_vit.objectives.config import MaeConfig, ObjectiveConfig
from ssl_vit.training.config import (
    CheckpointConfig,
    EngineConfig,
    ExportConfig,
    GuardConfig,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
)

CONFIG_FILE = "config.yaml"  # where a run folder keeps its own


class RunConfig(Config):
    """One pre-training run. The same RunConfig, data and code give the same losses."""

    recipe: str
    """Name of the recipe that this config started from."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of initialization, sample order, crops and masks."""

    resume_from: str = ""
    """Where the network starts from. A run folder or one of its `checkpoints/step_…`: everything
    that run learned, including teacher and heads, with positions resized to this run's crops. One
    of its `exports/step_…`: the backbone only. Empty: from scratch.
    """

    backbone: VitConfig = VitConfig()
    objective: ObjectiveConfig = MaeConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ExportConfig = ExportConfig()
    log: LogConfig = LogConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        """All checks between sections that need no machine and no data; those that do are the
        plan's (training/plan.py). What an objective needs of a backbone is its own `check`.
        """
        self.objective.check(self.backbone)
        if self.optimizer.freeze_units > self.backbone.depth:
            raise ValueError(
                f"optimizer.freeze_units={self.optimizer.freeze_units} is more than the "
                f"{self.backbone.depth} blocks of the backbone; choose a smaller one"
            )
        return self


# Sections that affect speed and records but not results (with the exception described at
# `engine.micro_batch_size`): a run may be resumed with other values.
FREE_ON_RESUME = ("engine", "guard", "checkpoint", "export", "log", "monitor")
# Data settings that may change too: the location of the shards, because their content is compared
# by fingerprint; the others decide whether a run continues, not on what.
FREE_OF_DATA = ("data.shards", "data.max_bad_fraction", "data.allow_shell_urls")
# Where the network that an objective reads lies: its content is compared by checksum.
FREE_PATHS = ("objective.teacher", "objective.tokenizer")


def may_change_on_resume(path: str) -> bool:
    """Whether a run folder may continue with another value at this config path."""
    free = (*FREE_OF_DATA, *FREE_PATHS)
    return path.partition(".")[0] in FREE_ON_RESUME or path in free
