"""A teacher that is the exponential moving average of its student, correct at every ZeRO stage.

Under ZeRO-3 every rank keeps a share of each parameter (`ds_tensor`). Student and teacher are cut
alike, so moving the shares moves the whole: nothing is gathered and nothing is sent.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class EmaTeacher(nn.Module):
    """Holds the teacher; a part of the objective, so that the engine shards it with the rest.

    The teacher is float32: at a momentum of 0.996 a bfloat16 weight rounds most updates away. Its
    buffers are copied, not averaged.

    Args:
        module: A copy of the student, the same names and shapes; it is frozen here.

    Raises:
        ValueError: A parameter is not float32.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(requires_grad=False)
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise ValueError(f"the teacher's {name} is {parameter.dtype}, not torch.float32")

    def forward(self, *inputs: Any) -> Any:
        """The teacher's answer, without gradients."""
        with torch.no_grad():
            return self.module(*inputs)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student, once for every applied update
        (Tarvainen & Valpola 2017, arXiv 1703.01780, equation 1).

        Args:
            student: As it is after the update.
            momentum: In [0, 1].

        Raises:
            ValueError: The momentum is out of range.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"an EMA momentum of {momentum} is not in [0, 1]")
        pairs = [
            pair
            for ours, theirs in zip(self.module.parameters(), student.parameters(), strict=True)
            for pair in _kept_here(ours, theirs)
        ]
        if pairs:
            ours, theirs = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(ours, theirs, 1 - momentum)
        for ours, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)


def _kept_here(ours: Any, theirs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """What this rank keeps of a teacher's parameter, beside the same of the student's."""
    if not hasattr(ours, "ds_tensor"):
        yield ours.data, theirs.data
        return
    yield ours.ds_tensor.data, theirs.ds_tensor.data
    # ZeRO-3 also keeps small parameters whole on every rank, and computes with those copies; where
    # there is one rank its share is the whole, and moving both would move it twice.
    is_share = ours.data.data_ptr() == ours.ds_tensor.data.data_ptr()
    if ours.data.numel() == ours.ds_numel and not is_share:
        if theirs.data.numel() != theirs.ds_numel:
            raise RuntimeError("ZeRO-3 keeps a teacher's parameter whole, but not its student's")
        yield ours.data, theirs.data
