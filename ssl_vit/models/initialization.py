"""All initialization, in one place."""

from typing import Literal, assert_never

from torch import Tensor, nn

Scheme = Literal["xavier_uniform", "truncated_normal"]


def initialize(module: nn.Module, scheme: Scheme) -> None:
    """Initialize linear layers, convolutions and norms below ``module``; free parameters are their
    owner's.

    Args:
        scheme: ``xavier_uniform`` (He et al. 2021, appendix A.1) or ``truncated_normal`` of 0.02
            (ViT, DINOv2).

    A convolution that is as large as its stride is a linear map of a patch, and initialized as one
    (He et al. 2021); the small ones of a conv stem follow He et al. 2015 (arXiv 1502.01852) for
    their ReLUs.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            _linear_weight(layer.weight, scheme)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            if layer.kernel_size == layer.stride or layer.kernel_size == (1, 1):
                _linear_weight(layer.weight.view(layer.out_channels, -1), scheme)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def initialize_token(token: nn.Parameter) -> None:
    """A class, register or mask token, or learned positions: a normal of 0.02."""
    nn.init.trunc_normal_(token, std=0.02)


def _linear_weight(weight: Tensor, scheme: Scheme) -> None:
    match scheme:
        case "xavier_uniform":
            nn.init.xavier_uniform_(weight)
        case "truncated_normal":
            nn.init.trunc_normal_(weight, std=0.02)
        case _:
            assert_never(scheme)
