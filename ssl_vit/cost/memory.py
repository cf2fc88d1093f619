"""Memory that a process of a run needs, calculated from its plan; no torch.

The figures follow what DeepSpeed 0.19 allocates with the settings of `zero_config.py`;
tests/cost/test_memory.py compares them with real training processes.
"""

from dataclasses import dataclass

from ssl_vit.cost.network import FLOAT32, Arithmetic, Cost
from ssl_vit.training.config import EngineConfig

# Elements that ZeRO communicates at once. DeepSpeed's default of 500 million would be a second copy
# of the gradients of most models.
_BUCKET = 50_000_000
# Elements that ZeRO-3 keeps gathered for their next use. DeepSpeed's default of a billion would be
# the whole model in most cases.
ZERO3_LIVE = 100_000_000
# Stage 0 always communicates half a billion elements at once, whatever the settings.
_STAGE_0_BUCKET = 500_000_000
# Share of the memory that a run may use: the rest is for fragmentation, kernels and other
# processes.
USABLE = 0.8


def bucket_of(trained: int) -> int:
    """Elements that ZeRO communicates at once, for a model with ``trained`` parameters: buckets are
    allocated in full, whatever the model's size, and must be even.
    """
    return min(_BUCKET, trained + trained % 2)


@dataclass(frozen=True)
class Memory:
    """Memory of one process, in bytes."""

    weights: float
    """Float32 weights used for computing; at ZeRO-3 this process's share."""
    gathered: float
    """Other processes' shares at ZeRO-3, while they are in use."""
    weight_copies: float
    """Autocast's lower-precision copies of weights while a micro-batch is computed."""
    held_gradients: float
    """Gradients of earlier micro-batches while a micro-batch is computed."""
    gradients: float
    """Gradients in the optimizer step, with the copies in which they are communicated."""
    optimizer: float
    """Two moments, and the float32 weights that are updated, if they are separate."""
    teacher: float
    """Parameters that are not trained."""
    activations: float
    """Activations of one micro-batch."""

    @property
    def total(self) -> float:
        """Peak memory: at the end of a forward pass, or in the optimizer step."""
        always = self.weights + self.gathered + self.optimizer + self.teacher
        return always + max(self.forward, self.gradients)

    def fits(self, memory_bytes: float) -> bool:
        """Whether it fits into the usable part of ``memory_bytes``."""
        return self.total <= USABLE * memory_bytes

    @property
    def forward(self) -> float:
        """Additional memory at the end of a forward pass: activations, copies of weights, and the
        gradients of earlier micro-batches.
        """
        return self.activations + self.weight_copies + self.held_gradients


def memory_of(
    cost: Cost,
    engine: EngineConfig,
    world_size: int,
    batches: tuple[int, int],
    arithmetic: Arithmetic,
) -> Memory:
    """Memory that one of ``world_size`` processes needs.

    Args:
        cost: Cost of one image.
        engine: Configuration of the engine.
        world_size: Total number of processes.
        batches: Images per forward pass, and forward passes per step, of one process.
        arithmetic: How matrix products are computed.
    """
    trained, frozen = FLOAT32 * cost.trained, FLOAT32 * cost.frozen
    share = trained / world_size
    bucket = FLOAT32 * bucket_of(cost.trained)
    on_gpu = arithmetic.device == "cuda"  # where gradients are copied into a contiguous bucket
    stage = engine.stage_of(world_size)
    match stage:
        case 0:
            weights, optimizer, held = trained, 2 * trained, trained
            communicated = min(cost.trained, _STAGE_0_BUCKET) if world_size > 1 else 0
            gradients = trained + FLOAT32 * communicated
        case 1:
            weights, optimizer, held = trained, 3 * share, trained
            gradients = trained + (bucket + share if on_gpu else max(bucket, share))
        case 2:
            weights, optimizer, held = trained, 3 * share, share + (bucket if on_gpu else 0)
            gradients = 2 * share + bucket
        case 3:
            weights, optimizer, held = share, 3 * share, share + bucket
            gradients, frozen = 2 * share + bucket, frozen / world_size
    gathered = 0.0
    if stage == 3 and world_size > 1:
        gathered = FLOAT32 * min(cost.trained + cost.frozen, ZERO3_LIVE)
    if engine.offload_optimizer and on_gpu:
        optimizer = 0
    micro_batch, accumulation = batches
    kept = cost.kept_bytes
    if engine.activation_checkpointing:
        kept = cost.checkpointed_bytes + cost.recomputed_bytes
    kept += cost.held_bytes + cost.working_bytes
    if accumulation == 1 and stage < 3:  # stage 3 allocates it from the start
        held = 0
    return Memory(
        weights=weights,
        gathered=gathered,
        weight_copies=cost.fixed_bytes,
        held_gradients=held,
        gradients=gradients,
        optimizer=optimizer,
        teacher=frozen,
        activations=micro_batch * kept,
    )


def largest_micro_batch(
    cost: Cost,
    engine: EngineConfig,
    world_size: int,
    batch: int,
    arithmetic: Arithmetic,
    memory_bytes: float,
) -> int:
    """The largest divisor of a process's share of a batch that fits into the usable share of its
    memory; 0 if none does.
    """
    share = batch // world_size
    fits = (
        micro
        for micro in range(share, 0, -1)
        if share % micro == 0
        and memory_of(cost, engine, world_size, (micro, share // micro), arithmetic).fits(
            memory_bytes
        )
    )
    return next(fits, 0)
