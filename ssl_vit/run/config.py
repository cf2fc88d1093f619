"""The whole configuration of a run, composed of the components' configs. Defaults live with the
components.
"""

from pydantic import Field, model_validator

from ssl_vit.config import Config
from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import BackboneConfig
from ssl_vit.monitors.config import MonitorConfig
from ssl_vit.objectives.config import DinoConfig, MaeConfig, ObjectiveConfig
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

    backbone: BackboneConfig = BackboneConfig()
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
    def _views_fit_the_patches(self) -> "RunConfig":
        objective, patch = self.objective, self.backbone.patch_size
        if not isinstance(objective, DinoConfig):
            return self
        if objective.local_crops and objective.local_size % patch:
            below = objective.local_size // patch * patch
            near = f"{below} or {below + patch}" if below else f"{patch}"
            raise ValueError(
                f"objective.local_size={objective.local_size} is not a multiple of "
                f"backbone.patch_size={patch}; set objective.local_size={near}"
            )
        most = round(objective.max_mask_ratio * self.backbone.num_patches)
        if objective.ibot_weight and not (objective.mask_probability and most):
            raise ValueError(
                f"objective.ibot_weight={objective.ibot_weight:g} has nothing to weigh: no patch "
                f"is ever masked at objective.mask_probability={objective.mask_probability:g} and "
                f"objective.max_mask_ratio={objective.max_mask_ratio:g}; raise these, or set "
                "objective.ibot_weight=0"
            )
        return self


# Sections that move speed and paper trail, not results (but for what `engine.micro_batch_size` says
# of itself): a run may be resumed with other values.
FREE_ON_RESUME = ("engine", "guard", "checkpoint", "export", "log", "monitor")
# And these of the data: the place of the shards may move, since their content is compared by
# fingerprint; the others decide whether to go on, not with what.
FREE_OF_DATA = ("data.shards", "data.max_bad_fraction", "data.allow_shell_urls")


def may_change_on_resume(path: str) -> bool:
    """Whether a run folder may continue with another value at this config path."""
    return path.partition(".")[0] in FREE_ON_RESUME or path in FREE_OF_DATA
