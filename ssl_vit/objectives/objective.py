"""The contract between what a network learns and how learning runs. The training loop knows
nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_vit.models.block import Block
from ssl_vit.models.stem import Stem
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.pixels import PixelScale


class Observed(NamedTuple):
    """What monitors look at; detached, and no part of the loss."""

    features: Tensor
    """(b, D) one vector an image, of what will be exported or what it follows."""
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

    backbone: VisionTransformer
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

    def blocks(self) -> list[Block]:
        """Every transformer block, for the engine's optimizations."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def stems(self) -> list[Stem]:
        """Every stem, for the same."""
        return [module for module in self.modules() if isinstance(module, Stem)]

    def exported_backbone(self) -> VisionTransformer:
        """The backbone worth keeping: the teacher where there is one."""
        return self.backbone

    def panels(self, batch: Any) -> dict[str, Tensor]:
        """Pictures for the log: name → (3, H, W) uint8. None by default."""
        return {}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: matrices, but for tokens and positions."""
    leaf = name.rpartition(".")[2]
    return parameter.ndim > 1 and not leaf.endswith("_token") and leaf != "pos_embed"
