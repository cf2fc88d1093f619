"""Optimizations that make an objective faster or smaller and change its losses only by rounding."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_vit.objectives.objective import Objective
from ssl_vit.training.config import EngineConfig


class InStep:
    """A context in which a training step is computed."""

    is_on = False

    def __enter__(self) -> None:
        self.is_on = True

    def __exit__(self, *error: object) -> None:
        self.is_on = False


def apply_optimizations(
    objective: Objective, engine_config: EngineConfig, device: Literal["cpu", "cuda"]
) -> InStep:
    """Change how the objective computes, in place; parameter names and values stay the same.

    Returns:
        The context in which forward and backward passes of training use compiled code: panels and
        validations have other batch sizes, and each would be compiled again.
    """
    in_step = InStep()
    if device == "cuda":  # torch's default is mixed: off for products, on for convolutions
        torch.backends.cuda.matmul.allow_tf32 = engine_config.tf32
        torch.backends.cudnn.allow_tf32 = engine_config.tf32
    if engine_config.compile and device == "cpu":
        _separate_compiled_code()
    for backbone in objective.backbones():
        backbone.use_channels_last(engine_config.channels_last)
    for unit in objective.units():
        forward = unit.forward
        if engine_config.compile:
            forward = _compiled(forward, in_step)
        if engine_config.activation_checkpointing:
            forward = _checkpointed(forward)
        unit.forward = forward  # type: ignore[method-assign] - hooks stay around it
    return in_step


def _separate_compiled_code() -> None:
    """Give each kind of processor its own folder of compiled code. Torch 2.13 looks code up by the
    graph alone: code compiled for AVX-512 turns everything to NaN in a process limited to AVX2.
    """
    kind = torch.backends.cpu.get_cpu_capability()
    default = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default))
    if folder.name != kind:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / kind)


def _compiled(plain: Callable[..., Tensor], in_step: InStep) -> Callable[..., Tensor]:
    """A forward pass that is compiled in a training step, also that of a teacher, whose blocks are
    in evaluation mode.
    """
    compiled: Any = torch.compile(plain, dynamic=False)
    return lambda *tensors: (compiled if in_step.is_on else plain)(*tensors)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor | None) -> Tensor:
        # The re-entrant variant would lose ZeRO's hooks on parameters.
        result: Any = checkpoint(forward, *tensors, use_reentrant=False)
        return result

    return run
