"""The optimizer, and what is set before each step: learning rate, weight decay, loss scale."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.objectives.objective import ParameterGroup
from ssl_vit.training.config import OptimizerConfig

_INITIAL_SCALE, _GROW_AFTER = 2.0**16, 2_000


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


def freeze_at_first(
    groups: Sequence[ParameterGroup], parameters: Iterable[nn.Parameter], steps: int
) -> list[ParameterGroup]:
    """The groups, with some parameters in groups of their own that are frozen for some steps.

    Args:
        groups: Those of the objective.
        parameters: The backbone's; others stay where they are.
        steps: Number of steps; 0: the groups as they are.
    """
    if not steps:
        return list(groups)
    chosen, found = {id(each) for each in parameters}, []
    for group in groups:
        inside = tuple(each for each in group.parameters if id(each) in chosen)
        outside = tuple(each for each in group.parameters if id(each) not in chosen)
        if inside:
            name, frozen = f"{group.name}_backbone", max(group.frozen_steps, steps)
            found.append(replace(group, name=name, parameters=inside, frozen_steps=frozen))
        if outside:
            found.append(replace(group, parameters=outside))
    return found


def set_schedules(
    param_groups: Sequence[dict[str, Any]],
    groups: Sequence[ParameterGroup],
    step: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Set this step's values in the optimizer's groups, scaled and frozen as each group
    specifies.
    """
    for target, group in zip(param_groups, groups, strict=True):
        frozen = step < group.frozen_steps
        target["lr"] = 0.0 if frozen else learning_rate * group.learning_rate_scale
        target["weight_decay"] = weight_decay * group.weight_decay_scale


class LossScale:
    """Dynamic loss scaling, for float16 only, whose gradients would be rounded to zero without it.
    The scale is halved when a gradient is not finite and doubled after 2,000 steps in which all
    were (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2).

    Not DeepSpeed's: at ZeRO 1 to 3 it updates the scale once for every parameter group, clips
    before it divides by the scale, and keeps the scale out of reach of a checkpoint.

    Args:
        enabled: Whether losses are scaled; otherwise the scale is always 1.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.state: Tensor = torch.tensor([_INITIAL_SCALE, 0.0])
        """(2,) float32: the scale, and the steps since it last changed. Saved in checkpoints."""

    @property
    def factor(self) -> float:
        """The factor by which the loss is multiplied."""
        return float(self.state[0]) if self.enabled else 1.0

    def update(self, finite: bool) -> bool:
        """Adjust the scale to whether a step's gradients were finite.

        Returns:
            Whether the scale was too high: the gradients were not finite, and the next scale is
            lower.
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
