"""Weight initialization of all modules."""

import math
from collections.abc import Iterable
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

Scheme = Literal["xavier_uniform", "truncated_normal", "depth_scaled"]


def initialize(module: nn.Module, scheme: Scheme) -> None:
    """Initialize linear layers, convolutions and norms in ``module``; other parameters are up to
    the modules that own them.

    Args:
        scheme: ``xavier_uniform`` (He et al. 2021, appendix A.1) or ``truncated_normal`` with
            standard deviation 0.02 (ViT, DINOv2). ``depth_scaled`` is the latter; the network
            also calls :func:`scale_by_depth` with its blocks.

    A convolution whose kernel equals its stride is a linear map of a patch and is initialized as
    one (He et al. 2021); those of a conv stem, followed by ReLUs, as in He et al. 2015 (arXiv
    1502.01852).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if isinstance(layer, nn.Linear) or layer.kernel_size in (layer.stride, (1, 1)):
                _linear_weight(layer.weight.view(len(layer.weight), -1), scheme)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def initialize_token(token: nn.Parameter) -> None:
    """Initialize a class, register or mask token, or learned positions: a truncated normal with
    standard deviation 0.02.
    """
    nn.init.trunc_normal_(token, std=0.02)


@torch.no_grad()
def scale_by_depth(blocks: Iterable[nn.Module], first_layer: int = 1) -> None:
    """Divide the weights of the two layers that end in a residual sum, the attention's projection
    and the second of the feed-forward layer, by √(2 · layer), in place.

    Args:
        blocks: Those of ``models/block.py``, in order.
        first_layer: Number of the first one, from 1 in a backbone.

    Source: Bao et al. 2021 (BEiT), arXiv 2106.08254.
    """
    for layer, block in enumerate(blocks, first_layer):
        for name in ("attn.proj.weight", "mlp.fc2.weight"):
            block.get_parameter(name).div_(math.sqrt(2 * layer))


def _linear_weight(weight: Tensor, scheme: Scheme) -> None:
    match scheme:
        case "xavier_uniform":
            nn.init.xavier_uniform_(weight)
        case "truncated_normal" | "depth_scaled":
            nn.init.trunc_normal_(weight, std=0.02)
        case _:
            assert_never(scheme)
