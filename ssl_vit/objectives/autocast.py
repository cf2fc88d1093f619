"""Full precision for the operations that must not run in bfloat16 or float16."""

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which operations keep the precision of their inputs, even under autocast."""
    return torch.autocast(tensor.device.type, enabled=False)
