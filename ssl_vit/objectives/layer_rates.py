"""Parameter groups by depth, for layer-wise decay of the learning rate (Clark et al. 2020, ELECTRA,
arXiv 2003.10555, appendix A; Bao et al. 2021, BEiT, arXiv 2106.08254).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ssl_vit.models.backbone import Backbone
from ssl_vit.objectives.objective import ParameterGroup


class Facts(NamedTuple):
    """What decides which group a parameter is in."""

    part: str
    """First word of the group's name."""
    learning_rate_scale: float
    weight_decay_scale: float
    frozen_steps: int = 0


def groups_by_facts(
    module: nn.Module, facts_of: Callable[[str, nn.Parameter], Facts]
) -> list[ParameterGroup]:
    """The trained parameters, those with the same facts together, in the order of their first.

    Args:
        module: The objective.
        facts_of: The facts of a parameter, by its name and itself.
    """
    found: dict[Facts, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.setdefault(facts_of(name, parameter), []).append(parameter)
    return [
        ParameterGroup(_title(facts), tuple(parameters), *facts[1:])
        for facts, parameters in found.items()
    ]


def _title(facts: Facts) -> str:
    rate = facts.learning_rate_scale
    return facts.part if rate == 1 else f"{facts.part}_{rate:.4g}"


class LayerRates:
    """Factors on the learning rate: ``decay`` for each layer below a backbone's last.

    Args:
        backbone: The backbone.
        decay: In (0, 1].
    """

    def __init__(self, backbone: Backbone, decay: float) -> None:
        self.backbone, self.decay = backbone, decay
        names = [name for name, _ in backbone.named_parameters()]
        self._last = max(map(backbone.layer_of, names))

    def of(self, name: str) -> float:
        """The factor of the backbone's parameter with this name; 1 for the norm at its end."""
        return self.decay ** (self._last - self.backbone.layer_of(name))

    @property
    def smallest(self) -> float:
        """The factor of the layer nearest the pixels."""
        return self.decay**self._last
