"""An EMA teacher (exponential moving average of its student) that works with every ZeRO stage.

Where parameters are sharded, student and teacher are sharded identically, so each rank updates its
own shards: nothing is gathered and nothing is communicated.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

LocalParts = Callable[[Tensor], list[Tensor]]
"""Maps a parameter to the tensors that this rank holds of it: its shard first, then the whole
parameter where that is held too.
"""


def whole(parameter: Tensor) -> list[Tensor]:
    """The tensors held of a parameter that is not sharded."""
    return [parameter.data]


class EmaTeacher(nn.Module):
    """Holds the teacher; a submodule of the objective, so that the engine shards it with the rest.

    The teacher is float32: at a momentum of 0.996, rounding to bfloat16 would lose most changes.
    Its buffers are copied, not averaged.

    Args:
        module: A copy of the student, with the same names and shapes; it is frozen here.

    Raises:
        ValueError: A parameter is not float32.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(requires_grad=False)
        self.local_parts: LocalParts = whole
        """Set by an engine that shards parameters."""
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise ValueError(f"the teacher's {name} is {parameter.dtype}, not torch.float32")

    def forward(self, *inputs: Any) -> Any:
        """The teacher's output, without gradients."""
        with torch.no_grad():
            return self.module(*inputs)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student, once per applied step
        (Tarvainen & Valpola 2017, arXiv 1703.01780, equation 1).

        Args:
            student: The student after the optimizer step.
            momentum: In [0, 1].

        Raises:
            ValueError: The momentum is out of range.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"an EMA momentum of {momentum} is not in [0, 1]")
        pairs = [
            pair
            for ours, theirs in zip(self.module.parameters(), student.parameters(), strict=True)
            for pair in _pairs(self.local_parts(ours), self.local_parts(theirs))
        ]
        if pairs:
            ours, theirs = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(ours, theirs, 1 - momentum)
        for ours, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)


def _pairs(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors this rank holds of a teacher's parameter, paired with the student's."""
    # With one rank the shard is the whole parameter, and updating both would update it twice.
    different = {part.data_ptr(): part for part in reversed(ours)}
    ours = list(reversed(different.values()))
    if len(ours) > len(theirs):
        raise RuntimeError("a teacher's parameter is kept whole, but not its student's")
    yield from zip(ours, theirs, strict=False)
