"""Where training in bfloat16 or float16 must not round."""

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Products inside are as precise as what goes into them, also where training is in bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)
