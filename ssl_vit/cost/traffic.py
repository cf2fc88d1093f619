"""What a process sends in a step, and how long it waits for that; no torch.

The bytes are those that DeepSpeed 0.19 communicates with the settings of `zero_config.py`:
gradients and weights in float32. Times assume ring algorithms, in which a process sends
(W − 1) / W of a tensor to reduce or to gather it among W processes, and twice that for both
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").
"""

from dataclasses import dataclass

from ssl_vit.cost.network import FLOAT32, Cost
from ssl_vit.training.config import EngineConfig

GPUS_PER_MACHINE = 8
"""With more, messages also travel between machines."""
ADAPTER = 50.0
"""GB/s of one 400 Gbit/s adapter, of which machines with eight H100 have one for each GPU."""
REACHED = 0.8
"""Share of an interconnect's speed that large messages reach."""
_BACKWARD = 2 / 3  # of a step's operations


@dataclass(frozen=True)
class Traffic:
    """What one process sends in a step, in bytes."""

    hidden: float
    """Sent while the GPU computes."""
    window: float
    """Share of the step's computation during which it is sent."""
    exposed: float
    """Sent while the GPU waits."""

    def waiting(self, compute_seconds: float, gigabytes_per_second: float) -> float:
        """Seconds of a step in which the GPU waits for communication.

        Args:
            compute_seconds: Duration of the step's computation.
            gigabytes_per_second: What a GPU sends at best; :data:`REACHED` of it is assumed.
        """
        rate = 1e9 * REACHED * gigabytes_per_second
        late = self.hidden / rate - self.window * compute_seconds
        return self.exposed / rate + max(0.0, late)


def traffic_of(cost: Cost, engine: EngineConfig, world_size: int, accumulation: int) -> Traffic:
    """Traffic of one of ``world_size`` processes in a step of ``accumulation`` micro-batches."""
    others = (world_size - 1) / world_size
    weights, teacher = others * FLOAT32 * cost.trained, others * FLOAT32 * cost.frozen
    match engine.stage_of(world_size):
        case 0:  # all gradients are summed after the backward pass
            return Traffic(0.0, 0.0, 2 * weights)
        case 1:  # summed during the last backward pass; then the new weights are gathered
            return Traffic(2 * weights, _BACKWARD / accumulation, weights)
        case 2:  # summed during every backward pass
            return Traffic(2 * weights * accumulation, _BACKWARD, weights)
        case 3:  # weights are gathered for both passes, gradients reduced
            return Traffic((3 * weights + teacher) * accumulation, 1.0, 0.0)
