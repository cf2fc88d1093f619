"""The optimizer, and setting its learning rate and weight decay by hand before every update."""

from collections.abc import Sequence
from typing import Any

import torch

from ssl_vit.objectives.objective import ParameterGroup
from ssl_vit.training.config import OptimizerConfig


def build_optimizer(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, fused: bool
) -> torch.optim.Optimizer:
    """AdamW over the groups, in their order (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm
    2).
    """
    return torch.optim.AdamW(
        [{"params": list(group.parameters), "name": group.name} for group in groups],
        lr=config.base_learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def set_schedules(
    param_groups: Sequence[dict[str, Any]],
    groups: Sequence[ParameterGroup],
    step: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Write this update's values into the optimizer's groups, scaled and frozen as each group
    asks.
    """
    for target, group in zip(param_groups, groups, strict=True):
        frozen = step < group.frozen_steps
        target["lr"] = 0.0 if frozen else learning_rate * group.learning_rate_scale
        target["weight_decay"] = weight_decay * group.weight_decay_scale
