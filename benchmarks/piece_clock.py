"""Times pieces of a training step, forward and backward, without changing their code."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PieceClock:
    """Total seconds spent in pieces of a step; a context manager that removes its wrappers at exit.

    A watched function is timed during its call, and in the backward pass from the arrival of the
    gradient of its output to the departure of the gradient of its input. autograd visits calls in
    reverse order, so the time between belongs to that piece.

    Args:
        now: Current time in seconds, after all queued work is done.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.now = now
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._watched: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "PieceClock":
        return self

    def __exit__(self, *error: object) -> None:
        for owner, attribute, function in reversed(self._watched):
            setattr(owner, attribute, function)

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Time a function of a module or an object from now on, as part of the piece ``name``."""
        function = getattr(owner, attribute)
        self._watched.append((owner, attribute, function))
        setattr(owner, attribute, self.timed(function, name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function with a timer around it."""

        @functools.wraps(function)
        def call(*inputs: Any) -> Any:
            arrived: list[float] = []

            def leave() -> None:
                self.seconds[name] += self.now() - arrived.pop()

            inputs = tuple(_border(each, leave) for each in inputs)
            began = self.now()
            output = function(*inputs)
            self.seconds[name] += self.now() - began
            return _border(output, lambda: arrived.append(self.now()))

        return call


class _Border(torch.autograd.Function):
    """The identity, with a callback when the gradient passes through it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, crossed: Callable[[], None]) -> Tensor:
        context.crossed = crossed
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.crossed()
        return *gradients, None


def _border(value: Any, crossed: Callable[[], None]) -> Any:
    """The value, with a callback in the backward pass if it is a tensor that requires grad."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        return _Border.apply(value, crossed)
    return value
