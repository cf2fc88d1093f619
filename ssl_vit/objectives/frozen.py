"""A network that an objective uses but neither trains nor saves."""

import torch
from torch import Tensor, nn

from ssl_vit.objectives.pixels import PixelScale


class Frozen:
    """Keeps a network out of its owner's modules, so that no optimizer, ZeRO stage or checkpoint
    sees it; every rank has the whole network.

    Args:
        network: Built identically on every rank; put into evaluation mode.
        pixel_scale: The network's own normalization of pixels.
    """

    def __init__(self, network: nn.Module, pixel_scale: PixelScale) -> None:
        self.modules = nn.ModuleList([network.requires_grad_(requires_grad=False), pixel_scale])
        self.modules.eval()

    @property
    def network(self) -> nn.Module:
        """The network, on the device where it was last used."""
        return self.modules[0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> object:
        """The network's output for (B, 3, H, W) images, uint8 or float32 in [0, 255], on the
        device that they are on.
        """
        network, pixel_scale = self.modules
        if next(pixel_scale.buffers()).device != images.device:
            self.modules.to(images.device)
        return network(pixel_scale(images))
