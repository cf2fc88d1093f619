"""How much memory a process of a run needs, worked out from its plan; no torch.

The figures follow what DeepSpeed 0.19 allocates under the settings of `zero_config.py`;
tests/cost/test_memory.py compares them with processes that train.
"""

from dataclasses import dataclass

from ssl_vit.models.cost import FLOAT32, Arithmetic, Cost
from ssl_vit.training.config import EngineConfig

# Elements that ZeRO sends at once. DeepSpeed's default of 500 million is a second copy of the
# gradients of most models.
_BUCKET = 50_000_000
# Elements that ZeRO-3 keeps gathered for their next use. DeepSpeed's default of a billion is the
# whole model, for most.
ZERO3_LIVE = 100_000_000
# Stage 0 sends half a billion elements at once, whatever is said.
_STAGE_0_BUCKET = 500_000_000
# Of what there is, a run is given so much: the rest is for fragments, kernels, other processes.
USABLE = 0.8


def bucket_of(trained: int) -> int:
    """Elements that ZeRO sends at once of so many: buckets are allocated in full, whatever the
    model's size, and must be even.
    """
    return min(_BUCKET, trained + trained % 2)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: float
    """Those that compute, float32; at ZeRO-3 this process's share."""
    gathered: float
    """At ZeRO-3, of the others' shares, while they are in use."""
    weight_copies: float
    """What is made of them while a micro-batch is computed: autocast's lower-precision copies."""
    held_gradients: float
    """While a micro-batch is computed, of those before."""
    gradients: float
    """In the update, with the copies in which they travel."""
    optimizer: float
    """Two moments, and the float32 weights that are updated, where these are others."""
    teacher: float
    """Parameters that are not trained."""
    activations: float
    """Of one micro-batch."""

    @property
    def total(self) -> float:
        """The most at one time: at the end of a forward pass, or in the update."""
        always = self.weights + self.gathered + self.optimizer + self.teacher
        return always + max(self.forward, self.gradients)

    def fits(self, memory_bytes: float) -> bool:
        """Whether a process that has so much may be given it."""
        return self.total <= USABLE * memory_bytes

    @property
    def forward(self) -> float:
        """What is there besides at the end of a forward pass: activations, copies of weights, the
        gradients of the micro-batches before.
        """
        return self.activations + self.weight_copies + self.held_gradients


def memory_of(
    cost: Cost,
    engine: EngineConfig,
    world_size: int,
    batches: tuple[int, int],
    arithmetic: Arithmetic,
) -> Memory:
    """What one of ``world_size`` processes needs.

    Args:
        cost: Of one image.
        engine: Its ZeRO stage, its optimizations.
        world_size: Processes in all.
        batches: Images a forward pass, and forward passes an update, of one process.
        arithmetic: How matrix products are computed.
    """
    trained, frozen = FLOAT32 * cost.trained, FLOAT32 * cost.frozen
    share = trained / world_size
    bucket = FLOAT32 * bucket_of(cost.trained)
    on_gpu = arithmetic.device == "cuda"  # where gradients are copied into a contiguous bucket
    match engine.zero_stage:
        case 0:
            weights, optimizer, held = trained, 2 * trained, trained
            gradients = trained + FLOAT32 * min(cost.trained, _STAGE_0_BUCKET)
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
    if engine.zero_stage == 3 and world_size > 1:
        gathered = FLOAT32 * min(cost.trained + cost.frozen, ZERO3_LIVE)
    if engine.offload_optimizer and on_gpu:
        optimizer = 0
    micro_batch, accumulation = batches
    kept = cost.kept_bytes
    if engine.activation_checkpointing:
        kept = cost.checkpointed_bytes + cost.recomputed_bytes
    kept += cost.held_bytes + cost.working_bytes
    if accumulation == 1 and engine.zero_stage < 3:  # which sets the room aside from the start
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
    """The largest divisor of a process's share of a batch that fits into ``USABLE`` of its memory;
    0 where none does.
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
