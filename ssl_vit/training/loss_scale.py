"""Dynamic loss scaling, for float16 alone: its gradients would be rounded to zero without.

Not DeepSpeed's: at ZeRO 1 to 3 it updates the scale once for every parameter group, clips before it
divides by the scale, and keeps the scale out of reach of a checkpoint.
"""

import torch
from torch import Tensor

_INITIAL, _GROW_AFTER = 2.0**16, 2_000


class LossScale:
    """Halved where a gradient is not finite, doubled after 2,000 updates in which all were
    (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2).

    Args:
        enabled: Whether anything is scaled; otherwise the scale is 1 and stays so.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.state: Tensor = torch.tensor([_INITIAL, 0.0])
        """(2,) float32: the scale, and the updates since it last changed. Kept in checkpoints."""

    @property
    def factor(self) -> float:
        """What the loss is multiplied with."""
        return float(self.state[0]) if self.enabled else 1.0

    def update(self, finite: bool) -> bool:
        """Learn from an update whether its gradients were finite.

        Returns:
            Whether the scale was to blame: they were not, and the next one is lower.
        """
        if not self.enabled:
            return False
        scale, good = self.state.tolist()
        if not finite:
            self.state[:] = torch.tensor([max(scale / 2, 1.0), 0.0])
            return scale > 1
        if good + 1 >= _GROW_AFTER:
            scale, good = scale * 2, -1.0
        self.state[:] = torch.tensor([scale, good + 1])
        return False
