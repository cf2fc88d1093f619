"""What can be said about optimization (moves the result) and the engine (moves only the speed)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_vit.config import Config
from ssl_vit.units import parse_bytes


class ScheduleConfig(Config):
    """How long, and how the learning rate rises and falls: linear warm-up, then half a cosine."""

    unit: Literal["epochs", "steps", "minutes"] = "epochs"
    """What `length` and `warmup` count. Minutes become steps once, by the rate measured at the
    run's first start; a resumed run keeps them.
    """

    length: float = Field(default=800.0, gt=0, le=1e12)
    """Length of the run."""

    warmup: float = Field(default=40.0, ge=0, le=1e12)
    """Part of the length in which the learning rate rises from 0."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> "ScheduleConfig":
        if self.warmup > self.length:
            raise ValueError(
                f"schedule.warmup={self.warmup:g} is longer than schedule.length={self.length:g}; "
                f"a tenth of the length, {self.length / 10:g}, is common"
            )
        return self


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2017)."""

    base_learning_rate: float = Field(default=1.5e-4, gt=0, le=1_000)
    """Learning rate at the rule's reference batch."""

    learning_rate_rule: Literal["linear_256", "sqrt_1024", "absolute"] = "linear_256"
    """Peak = base × batch/256 (Goyal et al. 2017), base × √(batch/1024) (DINOv2), or base."""

    final_learning_rate: float = Field(default=0.0, ge=0, le=1_000)
    """Learning rate at the end of the cosine."""

    weight_decay: float = Field(default=0.05, ge=0, le=1_000)
    """Decoupled weight decay at the start; none on biases, norms, tokens and positions."""

    final_weight_decay: float = Field(default=0.05, ge=0, le=1_000)
    """Weight decay at the end, reached on a cosine."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""

    clip_norm: float = Field(default=0.0, ge=0)
    """Gradients are scaled down to this global norm; 0 turns clipping off."""

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optimizer.betas={list(self.betas)} must lie in [0, 1); MAE uses [0.9, 0.95]"
            )
        return self


class EngineConfig(Config):
    """How fast and where, never what: no field here may move the losses beyond rounding, but for
    what `micro_batch_size` says of itself.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is one."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 copies everything, 1 shards the optimizer, 2 the gradients too, 3 the
    weights too.
    """

    zero3_whole_below: int = Field(default=100_000, ge=0)
    """ZeRO-3 keeps parameters of fewer elements whole on every rank instead of sending them."""

    offload_optimizer: bool = False
    """Keep the optimizer's part (12 bytes a parameter, shared by the ranks) in the memory of the
    CPU, and update there: slower, for models that do not fit otherwise. Needs ZeRO 1 or more.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the matrix products (autocast); parameters, losses and the optimizer are float32
    always. `auto`: bfloat16; where the device does not compute in it, float16 with loss scaling on
    a GPU, float32 on a CPU.
    """

    micro_batch_size: Annotated[int, Field(ge=1, le=2**24)] | Literal["auto"] = 64
    """Images a forward pass and process; a process's whole share where that is smaller. `auto`: the
    largest that fits into 80 % of its memory, by `ssl-vit plan`'s figures, found once for a run.
    It is part of the result where images are compared with each other or dropped: KoLeo looks for
    neighbors in the micro-batch of one process, Sinkhorn-Knopp uses prototypes alike over a
    micro-batch of all processes, and drop path leaves out a whole number of its images. With
    `objective.centering=average` and neither KoLeo nor drop path, it is speed alone.
    """

    activation_checkpointing: bool = False
    """Keep only the input of each block, and compute its inside again in the backward pass (Chen et
    al. 2016, arXiv 1604.06174): a fraction of the memory for a third more computing.
    """

    compile: bool = False
    """`torch.compile` for every block; needs a C++ compiler. Not with ZeRO-3."""

    fused_optimizer: bool = True
    """AdamW as one kernel instead of one operation after the other."""

    tf32: bool = False
    """Let float32 matrix products on a GPU round their inputs to 10 bits (TensorFloat-32)."""

    channels_last: bool = False
    """Lay images out with the channels last in memory for the stem's convolutions; for conv
    stems.
    """

    workers: Annotated[int, Field(ge=0, le=1_024)] | Literal["auto"] = "auto"
    """Data workers a process; `auto`: one for every core it has but one, at least 1, at most 16."""

    prefetch: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = "auto"
    """Micro-batches each data worker prepares ahead; `auto`: enough for two updates, at least 2, at
    most 8, but fewer, down to 1, where a process would hold more than 1 GiB of pixels.
    """

    verify_shards: bool = True
    """Compare each local shard with the sha256 of its index while it is first read, and again when
    it changes while it is in use; records (labels, offsets) and remote shards always are.
    """

    cache_folder: str = "auto"
    """Where remote shards are kept, on a local disk; `auto`: $SSL_VIT_CACHE or the user's cache
    folder.
    """

    cache_bytes: int | str = "64GiB"
    """Room for them, for all processes of a machine together; a number or a text as "200 GB"."""

    @model_validator(mode="after")
    def _size_is_readable(self) -> "EngineConfig":
        parse_bytes(str(self.cache_bytes), "engine.cache_bytes=")
        return self

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool):  # Python takes true for 1
            raise ValueError("engine.zero_stage is a number; allowed: 0, 1, 2, 3")
        return value

    @model_validator(mode="after")
    def _optimizations_go_together(self) -> "EngineConfig":
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "engine.compile=true does not work with engine.zero_stage=3: torch cannot trace "
                "parameters that are in pieces on all ranks; use zero_stage=2, or compile=false"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "engine.offload_optimizer=true needs engine.zero_stage=1 or more: at stage 0 there "
                "is no optimizer apart from the model's own parameters"
            )
        return self


class GuardConfig(Config):
    """When a run that goes wrong says so, or stops."""

    max_consecutive_nonfinite: int = Field(default=3, ge=1)
    """Updates with a loss or gradient that is NaN or infinite are not applied; so many in a row end
    the run.
    """

    hang_minutes: float = Field(default=30.0, ge=0)
    """Without an update for so long, every rank writes its stacks into the run folder; 0: never."""


class CheckpointConfig(Config):
    """Resumable checkpoints, in the run folder's `checkpoints/`."""

    every_steps: int = Field(default=1_000, ge=1)
    """Optimizer updates between two checkpoints."""

    keep_last: int = Field(default=2, ge=1)
    """Older ones are deleted, but only after a newer one is complete on disk."""

    keep_every_steps: int = Field(default=0, ge=0)
    """Those after a multiple of so many updates are never deleted; 0: none is kept for ever."""


class ExportConfig(Config):
    """Portable exports, in the run folder's `exports/`; one is always written at the end."""

    every_steps: int = Field(default=10_000, ge=1)
    """Optimizer updates between two exports."""


class LogConfig(Config):
    """What the run tells."""

    every_steps: int = Field(default=1, ge=1)
    """Updates between two lines of `metrics.jsonl` (and points in TensorBoard)."""

    norm_every_steps: int = Field(default=10, ge=1)
    """Updates between two measurements of the norms of gradient, weights and update by parameter
    group; one costs about as much as AdamW.
    """

    panel_every_steps: int = Field(default=500, ge=1)
    """Updates between two picture panels in TensorBoard."""
