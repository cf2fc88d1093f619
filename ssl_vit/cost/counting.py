"""The cost of a network, which torch counts in one forward pass over tensors without data.

The tensors pretend to be on a CPU, where autocast and autograd do what they do in training; so the
cost on a GPU can be counted on a machine without one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from ssl_vit.cost.network import Arithmetic, Cost, Parameters
from ssl_vit.cost.tracing import Origin, Trace
from ssl_vit.data.config import DataConfig
from ssl_vit.data.order import SampleRandomness, SampleRef
from ssl_vit.data.views import Sample
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import ObjectiveConfig
from ssl_vit.objectives.objective import Objective

# Images in the counted micro-batch: 100, so that whole percentages of them (drop path) are whole
# images. Without data, more images cost nothing.
_IMAGES = 100
# Size of the image for which views are drawn: ImageNet's usual one.
_HEIGHT, _WIDTH = 375, 500


def count_parameters(
    config: ObjectiveConfig, backbone: BackboneConfig, frozen_units: int = 0
) -> Parameters:
    """Parameters of an objective; ``frozen_units`` as in ``Backbone.freeze_first``."""
    return _count_parameters(config, backbone, frozen_units)  # type: ignore[arg-type] - frozen: hashable


@cache  # the runs of a sweep have them in common
def _count_parameters(
    config: ObjectiveConfig, backbone: BackboneConfig, frozen_units: int
) -> Parameters:
    return _parameters_of(_build(config, backbone, frozen_units))


def backbone_parameters(config: BackboneConfig) -> int:
    """Total number of a backbone's parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_backbone(config).parameters())


def count_cost(
    config: ObjectiveConfig,
    backbone: BackboneConfig,
    arithmetic: Arithmetic,
    frozen_units: int = 0,
) -> Cost:
    """Cost of one image: backbone, the objective's own networks, and the loss.

    Patches are masked as in a micro-batch of a run, including padding. ``frozen_units`` as in
    ``Backbone.freeze_first``.
    """
    objective, mode, trace = _build(config, backbone, frozen_units), FakeTensorMode(), Trace()
    parameters = _parameters_of(objective)
    _pretend(objective, mode)
    given = [frozen.modules for frozen in objective.frozen()]
    for network in given:
        _pretend(network, mode)
    batch = _draw_batch(config, backbone, mode)
    for network in (objective, *given):
        trace.give([*network.parameters(), *network.buffers()], Origin.WEIGHTS)
    trace.give(batch, Origin.DATA)
    for block in objective.units():
        trace.watch(block)
    with mode, _computed_as(arithmetic), trace:
        # Assigned to a name, because tensors saved by autograd live as long as the output does.
        output = objective(batch, 0)
    del output
    return Cost(
        **vars(parameters),
        # The backward pass computes two matrix products for each one in the forward pass.
        step_flops=(3 * trace.learned_flops + trace.other_flops) / _IMAGES,
        kept_bytes=trace.kept_bytes / _IMAGES,
        checkpointed_bytes=trace.checkpointed_bytes / _IMAGES,
        recomputed_bytes=trace.recomputed_bytes / _IMAGES,
        held_bytes=trace.held_bytes / _IMAGES,
        # The backward pass of the widest operation: a gradient and the one it is computed from.
        working_bytes=2 * trace.widest_bytes / _IMAGES,
        fixed_bytes=trace.fixed_bytes + sum(map(_num_bytes, given)),
    )


def _num_bytes(network: nn.Module) -> int:
    tensors = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _parameters_of(objective: Objective) -> Parameters:
    found = list(objective.parameters())
    return Parameters(
        trained=sum(p.numel() for p in found if p.requires_grad),
        frozen=sum(p.numel() for p in found if not p.requires_grad),
        backbone=sum(p.numel() for p in objective.backbone.parameters() if p.requires_grad),
        exported=sum(
            tensor.numel()
            for module in objective.exported().values()
            for tensor in module.state_dict().values()
        ),
    )


def _build(config: ObjectiveConfig, backbone: BackboneConfig, frozen_units: int) -> Objective:
    with torch.device("meta"):
        network = build_backbone(backbone)
        network.freeze_first(frozen_units)
        return build_objective(config, network, DataConfig(), total_steps=1)


def _pretend(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all parameters and buffers by tensors without data that pretend to be on the CPU."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            pretended = nn.Parameter(_without_data(parameter.data, mode), parameter.requires_grad)
            setattr(part, name, pretended)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, _without_data(buffer, mode))


def _without_data(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    return FakeTensor(mode, tensor.to("meta"), torch.device("cpu"))


def _draw_batch(config: ObjectiveConfig, backbone: BackboneConfig, mode: FakeTensorMode) -> Any:
    """A micro-batch of the first samples of a run."""
    views, randomness = build_views(config, backbone), SampleRandomness(0)
    draws = [
        views.draw(_HEIGHT, _WIDTH, randomness.of(SampleRef(number, 0)))
        for number in range(_IMAGES)
    ]
    crops = [
        torch.empty(count, _IMAGES, *size, 3, dtype=torch.uint8, device="meta").movedim(-1, 2)
        for count, size in views.crop_sizes
    ]
    batch = views.collate(crops, draws, [Sample(number, -1) for number in range(_IMAGES)])
    return type(batch)(*(_without_data(tensor, mode) for tensor in batch))


@contextmanager
def _computed_as(arithmetic: Arithmetic) -> Iterator[None]:
    """A context in which the CPU computes in the precisions of the target device."""
    if arithmetic.device == "cpu":
        kind, context = torch.bfloat16, nullcontext()
    else:
        # In float16, which has the same size, because bfloat16 attention is special on a CPU.
        kind, context = torch.float16, _AsOnGpu()
    with torch.autocast("cpu", kind, enabled=arithmetic.precision != "float32"), context:
        yield


class _AsOnGpu(TorchFunctionMode):
    """Computes in float32 what autocast computes in float32 on a GPU but not on a CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            # A CPU has no fused kernel with a gradient for the bias; a GPU has one, which makes
            # that gradient for every image.
            mask, (queries, keys) = kwargs["attn_mask"], args[:2]
            kwargs["attn_mask"] = mask.detach()
            queries.new_empty(*queries.shape[:3], keys.shape[2])
        return func(*args, **kwargs)
