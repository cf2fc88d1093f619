"""A clock for the pieces of a training step, forward and backward, that leaves their code alone."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PieceClock:
    """Seconds spent in pieces of a step, added up; a context manager that undoes its watching.

    A watched function is timed where it is called; in the backward pass from where the gradient of
    the tensor it returned arrives to where the gradient of the one it was given leaves. autograd
    goes back through the calls in the opposite order, so what lies between is that piece's.

    Args:
        now: Seconds, once all work that was asked for is done.
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
        """Time a function of a module or an object from now on, as a part of ``name``."""
        function = getattr(owner, attribute)
        self._watched.append((owner, attribute, function))
        setattr(owner, attribute, self.timed(function, name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same function, watched."""

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
    """Nothing, but it is told when the gradient crosses it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, crossed: Callable[[], None]) -> Tensor:
        context.crossed = crossed
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.crossed()
        return *gradients, None


def _border(value: Any, crossed: Callable[[], None]) -> Any:
    """The value, watched if it is a tensor that a gradient will reach."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        return _Border.apply(value, crossed)
    return value
