"""Optimizations that make an objective faster or smaller and change its losses only by rounding."""

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_vit.errors import UserError
from ssl_vit.foreign import first_line
from ssl_vit.objectives.objective import Objective
from ssl_vit.training.config import EngineConfig

_GRAPHS_PER_UNIT = 8  # sizes of views, with a gradient and without


class InStep:
    """A context in which a training step is computed, with compiled code if there is any."""

    def __init__(self, may_give_up: bool = False) -> None:
        self.is_on, self.may_give_up = False, may_give_up
        self.compiles = False
        self.gave_up = ""
        """Why torch could not compile; empty: it could."""
        self._is_said = False

    def __enter__(self) -> None:
        self.is_on = True

    def __exit__(self, *error: object) -> None:
        self.is_on = False

    def take_note(self) -> str:
        """What to say of compilation after the first step, once; empty: nothing."""
        if self._is_said:
            return ""
        self._is_said = True
        if self.gave_up:
            return f"not compiled, since torch cannot: {self.gave_up}"
        if not self.compiles:
            return ""
        from torch._dynamo.utils import calculate_time_spent

        return f"compiled in {calculate_time_spent().get('total_wall_time', 0.0):.0f} s"


def apply_optimizations(
    objective: Objective, engine_config: EngineConfig, device: Literal["cpu", "cuda"]
) -> InStep:
    """Change how the objective computes, in place; parameter names and values stay the same.

    Returns:
        The context in which forward and backward passes of training use compiled code: panels and
        validations have other batch sizes, and each would be compiled again.
    """
    in_step = InStep(may_give_up=engine_config.compile == "auto")
    if device == "cuda":  # torch's default is mixed: off for products, on for convolutions
        torch.backends.cuda.matmul.allow_tf32 = engine_config.tf32
        torch.backends.cudnn.allow_tf32 = engine_config.tf32
    compiles = in_step.compiles = engine_config.compiles_on(device)
    if compiles:
        _allow_graphs(len(objective.units()))
        if device == "cpu":
            _separate_compiled_code()
    for backbone in objective.backbones():
        backbone.use_channels_last(engine_config.channels_last)
    for unit in objective.units():
        forward = unit.forward
        if compiles:
            forward = _compiled(forward, in_step)
        if engine_config.activation_checkpointing:
            forward = _checkpointed(forward)
        unit.forward = forward  # type: ignore[method-assign] - hooks stay around it
    for owner, name, varying in objective.compilable() if compiles else ():
        setattr(owner, name, _compiled(getattr(owner, name), in_step, varying))
    return in_step


def _allow_graphs(num_units: int) -> None:
    """Let each unit have graphs of its own: with a rate of stochastic depth that differs from block
    to block, shapes differ, and torch gives up after eight graphs of one function.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _GRAPHS_PER_UNIT * num_units)
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, config.recompile_limit
    )


def _separate_compiled_code() -> None:
    """Give each kind of processor its own folder of compiled code. Torch 2.13 looks code up by the
    graph alone: code compiled for AVX-512 turns everything to NaN in a process limited to AVX2.
    """
    kind = torch.backends.cpu.get_cpu_capability()
    default = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default))
    if folder.name != kind:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / kind)


def _compiled(
    plain: Callable[..., Any], in_step: InStep, varying: Collection[int] = ()
) -> Callable[..., Any]:
    """A function that is compiled in a training step, also that of a teacher, which is in
    evaluation mode.

    Args:
        plain: A function of tensors.
        in_step: Says when.
        varying: Places of the arguments whose first dimension varies.
    """
    # Here, because importing it takes seconds.
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException
    from torch._functorch.config import patch

    compiled: Any = torch.compile(plain, dynamic=None if varying else False, fullgraph=True)

    def run(*tensors: Tensor | None) -> Any:
        if not in_step.is_on or in_step.gave_up:
            return plain(*tensors)
        for place in varying:
            if tensors[place] is not None:
                maybe_mark_dynamic(tensors[place], 0)
        try:
            # The backward pass too at once: when it runs it is too late to do without.
            with patch(force_non_lazy_backward_lowering=True):
                return compiled(*tensors)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {first_line(cause)}"
            if not in_step.may_give_up:
                raise UserError(
                    f"torch cannot compile this network: {reason}", "set engine.compile=false"
                ) from error
            in_step.gave_up = reason
            return plain(*tensors)

    return run


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor | None) -> Tensor:
        # The re-entrant variant would lose ZeRO's hooks on parameters.
        result: Any = checkpoint(forward, *tensors, use_reentrant=False)
        return result

    return run
