"""The contract between what a network learns and how learning runs. The training loop knows
nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.block import Block
from ssl_vit.objectives.pixels import PixelScale


class Observed(NamedTuple):
    """What monitors look at; detached, and no part of the loss."""

    features: Tensor
    """(b, D) one vector per image, of what will be exported or what it follows."""
    codes: Tensor | None = None
    """(b,) int64, the codebook entry or prototype of each image, where there are any."""
    num_codes: int = 0
    """How many there are."""


class StepOutput(NamedTuple):
    """What one forward pass says."""

    loss: Tensor
    """float32 scalar, averaged over the micro-batch."""
    metrics: dict[str, Tensor]
    """Detached float32 scalars, averaged over the micro-batch; they are averaged again over
    micro-batches and ranks.
    """
    observed: Observed


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share the scales of the schedules."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate_scale: float = 1.0
    """Times the scheduled learning rate."""
    weight_decay_scale: float = 1.0
    """Times the scheduled weight decay; 0 for biases, norms, tokens and positions."""
    frozen_steps: int = 0
    """Updates at the start in which the learning rate is 0."""


class Objective(nn.Module, ABC):
    """Model, loss and the loss's own state, as one module that DeepSpeed wraps."""

    backbone: Any
    """A `Backbone`; each objective declares the step of the contract that it needs."""
    pixel_scale: PixelScale

    @abstractmethod
    def forward(self, batch: Any, step: int) -> StepOutput:
        """Loss of one micro-batch at optimizer update ``step`` (counted from 0)."""

    def after_step(self, step: int) -> None:
        """Called once for every *applied* update: an EMA teacher moves here. Does nothing by
        default.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """The trained parameters: matrices decay; vectors, tokens and positions do not."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (decayed if decays(name, parameter) else plain).append(parameter)
        return [
            ParameterGroup("decayed", tuple(decayed)),
            ParameterGroup("plain", tuple(plain), weight_decay_scale=0.0),
        ]

    def units(self) -> list[nn.Module]:
        """Modules that checkpointing and compilation act on: those of every backbone, and the
        objective's own transformer blocks.
        """
        found: list[nn.Module] = [each for each in self.modules() if isinstance(each, Block)]
        for backbone in self.backbones():
            found += [unit for unit in backbone.units() if unit not in found]
        return found

    def backbones(self) -> list[Backbone]:
        """Every backbone in it: a student's and a teacher's."""
        return [module for module in self.modules() if isinstance(module, Backbone)]

    def exported(self) -> dict[str, nn.Module]:
        """What is worth keeping, by the name of its file; `backbone` among it, the teacher's where
        there is one.
        """
        return {"backbone": self.backbone}

    @property
    def exported_backbone(self) -> Backbone:
        """The backbone of :meth:`exported`."""
        backbone = self.exported()["backbone"]
        assert isinstance(backbone, Backbone)
        return backbone

    def panels(self, batch: Any) -> dict[str, Tensor]:
        """Pictures for the log: name → (3, H, W) uint8. None by default."""
        return {}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: matrices, but for tokens and positions."""
    leaf = name.rpartition(".")[2]
    return parameter.ndim > 1 and not leaf.endswith("_token") and leaf != "pos_embed"
