"""Configuration of the optimization (affects the result) and of the engine (affects only speed)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ssl_vit.config import Config
from ssl_vit.units import parse_bytes

ZeroStage = Literal[0, 1, 2, 3]


class ScheduleConfig(Config):
    """Length of the run and shape of the learning rate: linear warm-up, then half a cosine."""

    unit: Literal["epochs", "steps", "minutes"] = "epochs"
    """Unit of `length` and `warmup`. Minutes become steps once, by the rate measured at the run's
    first start; a resumed run keeps them.
    """

    length: float = Field(default=800.0, gt=0, le=1e12)
    """Length of the run."""

    warmup: float = Field(default=40.0, ge=0, le=1e12)
    """Length of the warm-up, during which the learning rate rises from 0; part of `length`."""

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
    """Learning rate at the reference batch size of `learning_rate_rule`."""

    learning_rate_rule: Literal["linear_256", "sqrt_1024", "absolute"] = "linear_256"
    """How the peak learning rate follows from the base rate: base × batch/256 (Goyal et al. 2017),
    base × √(batch/1024) (DINOv2), or the base rate itself.
    """

    final_learning_rate: float = Field(default=0.0, ge=0, le=1_000)
    """Learning rate at the end of the cosine."""

    weight_decay: float = Field(default=0.05, ge=0, le=1_000)
    """Decoupled weight decay at the start; not applied to biases, norms, tokens and positions."""

    final_weight_decay: float = Field(default=0.05, ge=0, le=1_000)
    """Weight decay at the end, reached along a cosine."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""

    clip_norm: float = Field(default=0.0, ge=0)
    """Largest global norm of the gradients; larger ones are scaled down. 0 turns clipping off."""

    freeze_units: int = Field(default=0, ge=0, le=10_000)
    """Number of the backbone's first units (blocks) that are never trained, and with them the stem,
    the tokens and the positions; for a backbone from `resume_from`.
    """

    freeze_steps: int = Field(default=0, ge=0)
    """Steps at the start in which the whole backbone is not trained, so that new heads can adapt to
    a backbone from `resume_from` first.
    """

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optimizer.betas={list(self.betas)} must lie in [0, 1); MAE uses [0.9, 0.95]"
            )
        return self


class EngineConfig(Config):
    """Where and how fast a run computes. Settings here change losses only by rounding, with the
    exception described at `micro_batch_size`.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on. `auto`: CUDA if available, otherwise CPU."""

    zero_stage: ZeroStage = 1
    """DeepSpeed ZeRO stage. 0 replicates everything; 1 shards the optimizer state, 2 also the
    gradients, 3 also the weights. One process has nothing to shard: there 1 and 2 are computed as
    0, unless the optimizer state is in CPU memory.
    """

    zero3_whole_below: int = Field(default=100_000, ge=0)
    """Number of elements below which ZeRO-3 keeps a parameter whole on every rank instead of
    gathering it.
    """

    offload_optimizer: bool = False
    """Keep the optimizer state (12 bytes per parameter, divided among the ranks) in CPU memory and
    update the weights there: slower, for models that do not fit otherwise. Needs ZeRO 1 or higher.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of matrix products (autocast); parameters, losses and the optimizer are always
    float32. `auto`: bfloat16; on devices without it, float16 with loss scaling on a GPU, float32 on
    a CPU.
    """

    micro_batch_size: Annotated[int, Field(ge=1, le=2**24)] | Literal["auto"] = 64
    """Images per forward pass and process; a process's whole share of the batch if that is smaller.
    `auto`: the largest that fits into 80 % of its memory by the estimate of `ssl-vit plan`,
    determined once per run. Affects the result where images in a micro-batch interact: KoLeo
    searches for neighbors in the micro-batch of one process, Sinkhorn-Knopp balances prototypes
    over a micro-batch of all processes, and drop path skips a whole number of its images. With
    `objective.centering=average` and neither KoLeo nor drop path, it affects speed only.
    """

    activation_checkpointing: bool = False
    """Keep only the input of each block and recompute the rest in the backward pass (Chen et al.
    2016, arXiv 1604.06174): much less memory for about a third more computation.
    """

    compile: bool | Literal["auto"] = "auto"
    """Apply `torch.compile` to blocks, heads and losses: fewer and larger kernels; losses change by
    rounding only. Needs a C++ compiler and does not work with ZeRO-3. `auto`: on a GPU, below
    ZeRO-3; where torch cannot compile, the run says why and continues without.
    """

    fused_optimizer: bool = True
    """Run AdamW as one fused kernel instead of one operation after another."""

    tf32: bool = False
    """Let float32 matrix products on a GPU round their inputs to 10 bits of mantissa
    (TensorFloat-32).
    """

    channels_last: bool = False
    """Store images with the channels last in memory for the stem's convolutions; useful for conv
    stems.
    """

    workers: Annotated[int, Field(ge=0, le=1_024)] | Literal["auto"] = "auto"
    """Data workers per process. `auto`: one for each available core except one, from 1 to 16."""

    prefetch: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = "auto"
    """Micro-batches that each data worker prepares ahead. `auto`: enough for two steps, between 2
    and 8; fewer, down to 1, if a process would hold more than 1 GiB of pixels.
    """

    verify_shards: bool = True
    """Compare each local shard with the sha256 in its index when it is first read, and again if it
    changes while in use. Records (labels, offsets) and remote shards are always verified.
    """

    cache_folder: str = "auto"
    """Folder for cached remote shards, on a local disk. `auto`: $SSL_VIT_CACHE or the user's cache
    folder.
    """

    cache_bytes: int | str = "64GiB"
    """Largest size of that cache, shared by all processes of a machine; a number of bytes or a text
    such as "200 GB".
    """

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
        if self.compile is True and self.zero_stage == 3:
            raise ValueError(
                "engine.compile=true does not work with engine.zero_stage=3: torch cannot trace "
                "sharded parameters; use engine.zero_stage=2, or engine.compile=false"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "engine.offload_optimizer=true needs engine.zero_stage=1 or higher: at stage 0 the "
                "optimizer updates the model's own parameters"
            )
        return self

    def compiles_on(self, device: Literal["cpu", "cuda"]) -> bool:
        """Whether a run on this device is compiled, see `compile`."""
        if self.compile == "auto":
            return device == "cuda" and self.zero_stage < 3
        return self.compile

    def stage_of(self, world_size: int) -> ZeroStage:
        """The ZeRO stage of a run of so many processes, see `zero_stage`: alone, a process would
        only copy its weights and gradients.
        """
        is_alone = world_size == 1 and not self.offload_optimizer
        return 0 if is_alone and self.zero_stage < 3 else self.zero_stage


class GuardConfig(Config):
    """When a run that goes wrong reports it or stops."""

    max_consecutive_nonfinite: int = Field(default=3, ge=1)
    """Number of consecutive steps with a NaN or infinite loss or gradient that ends the run; such
    steps never update the weights.
    """

    hang_minutes: float = Field(default=30.0, ge=0)
    """Minutes without a step after which every rank writes its stack traces to the run folder; 0:
    never.
    """


class CheckpointConfig(Config):
    """Resumable checkpoints in the run folder's `checkpoints/`."""

    every_steps: int = Field(default=1_000, ge=1)
    """Optimizer steps between two checkpoints."""

    keep_last: int = Field(default=2, ge=1)
    """Number of latest checkpoints to keep; older ones are deleted only after a newer one is
    complete on disk.
    """

    keep_every_steps: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this many steps are never deleted; 0: all may be deleted."""


class ExportConfig(Config):
    """Portable exports in the run folder's `exports/`; one is always written at the end."""

    every_steps: int = Field(default=10_000, ge=1)
    """Optimizer steps between two exports."""


class LogConfig(Config):
    """How often the run records metrics and panels."""

    every_steps: int = Field(default=1, ge=1)
    """Steps between two lines of `metrics.jsonl` (and points in TensorBoard)."""

    norm_every_steps: int = Field(default=10, ge=1)
    """Steps between two measurements of the norms of gradient, weights and update by parameter
    group; one measurement costs about as much as an AdamW step.
    """

    panel_every_steps: int = Field(default=500, ge=1)
    """Steps between two image panels (`panels/` and TensorBoard)."""
