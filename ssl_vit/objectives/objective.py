"""The contract between objectives and the training loop, which knows nothing else about them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.block import Block
from ssl_vit.objectives.frozen import Frozen
from ssl_vit.objectives.pixels import PixelScale


class Observed(NamedTuple):
    """What monitors inspect; detached, and not part of the loss."""

    features: Tensor
    """(b, D) one vector per image, from the exported network or the one it is averaged from."""
    codes: Tensor | None = None
    """(b,) int64 codebook entry or prototype of each image, if the objective has any."""
    num_codes: int = 0
    """Number of codebook entries or prototypes; 0: none."""


class StepOutput(NamedTuple):
    """Results of one forward pass."""

    loss: Tensor
    """float32 scalar, averaged over the micro-batch."""
    metrics: dict[str, Tensor]
    """Detached float32 scalars, averaged over the micro-batch; the engine averages them over
    micro-batches and ranks.
    """
    observed: Observed
    """Input of the monitors."""


class HeadStart(NamedTuple):
    """The weights of a head before the first step."""

    state: dict[str, Tensor]
    """Entries of the objective's state dict, on the CPU."""
    note: str
    """For a person: what it was fitted to, and how well."""


class Compilable(NamedTuple):
    """A function of tensors that torch.compile may replace."""

    owner: Any
    """The object whose attribute it is."""
    name: str
    varying: tuple[int, ...] = ()
    """Places of the arguments whose first dimension differs from step to step."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share their learning rate and weight decay schedules."""

    name: str
    """Name in the optimizer and in logs."""
    parameters: tuple[nn.Parameter, ...]
    """The parameters themselves."""
    learning_rate_scale: float = 1.0
    """Factor on the scheduled learning rate."""
    weight_decay_scale: float = 1.0
    """Factor on the scheduled weight decay; 0 for biases, norms, tokens and positions."""
    frozen_steps: int = 0
    """Number of steps at the start of the run in which the learning rate is 0."""


class Objective(nn.Module, ABC):
    """The model, its loss and the state of the loss, as one module that DeepSpeed wraps."""

    backbone: Any
    """A `Backbone`; each objective declares the subclass that it needs."""
    pixel_scale: PixelScale

    @abstractmethod
    def forward(self, batch: Any, step: int) -> StepOutput:
        """Loss of one micro-batch at optimizer step ``step`` (counted from 0)."""

    def after_step(self, step: int) -> None:
        """Called once per *applied* step, to update an EMA teacher. Does nothing by default."""

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
        """Modules for activation checkpointing and compilation: those of every backbone, and
        the objective's own transformer blocks.
        """
        found: list[nn.Module] = [each for each in self.modules() if isinstance(each, Block)]
        for backbone in self.backbones():
            found += [unit for unit in backbone.units() if unit not in found]
        return found

    def compilable(self) -> list[Compilable]:
        """What is compiled besides the units: heads, targets and losses, each one graph."""
        return [Compilable(self.pixel_scale, "forward")]

    def backbones(self) -> list[Backbone]:
        """All backbones in the objective: the student's and the teacher's, if there is one."""
        return [module for module in self.modules() if isinstance(module, Backbone)]

    def exported(self) -> dict[str, nn.Module]:
        """The modules to export, by file name; always has `backbone`, the teacher's if there is
        one.
        """
        return {"backbone": self.backbone}

    def described(self) -> dict[str, dict[str, Any]]:
        """What it takes to use the exported modules other than `backbone`: by file name, the fields
        of its description (`exports/folder.py`).
        """
        return {}

    def frozen(self) -> list[Frozen]:
        """Networks that are used but neither trained nor saved."""
        return []

    def load_given(self, network: nn.Module) -> None:
        """Take over the weights of the network that the config's `given` names, on the CPU."""

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) float32 logits of (B, 3, H, W) uint8 images, as an export would have them now; for
        objectives that learn from labels.
        """
        raise NotImplementedError(f"{type(self).__name__} does not classify")

    def head_inputs(self, batch: Any) -> Tensor:
        """(B, D) what a linear head would see of a micro-batch, without mixing its images; for
        objectives whose config `fits_head`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no linear head")

    def fit_head(self, inputs: Tensor, labels: Tensor, numbers: Tensor) -> HeadStart:
        """A head for a backbone that is not trained yet; nothing is changed.

        Args:
            inputs: (N, D) from :meth:`head_inputs`.
            labels: (N,) int64, on the same device.
            numbers: (N,) int64 the sample that each row is a view of.
        """
        raise NotImplementedError(f"{type(self).__name__} has no linear head")

    @property
    def exported_backbone(self) -> Backbone:
        """The backbone of :meth:`exported`."""
        backbone = self.exported()["backbone"]
        assert isinstance(backbone, Backbone)
        return backbone

    def panels(self, batch: Any) -> dict[str, Tensor]:
        """Pictures for the log: name → (3, H, W) uint8. Empty by default."""
        return {}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, except tokens, position embeddings and tables of
    relative positions (as in timm; BEiT's own code decays mask token and tables).
    """
    leaf = name.rpartition(".")[2]
    is_position = leaf in ("pos_embed", "relative_position_bias_table")
    return parameter.ndim > 1 and not leaf.endswith("_token") and not is_position
