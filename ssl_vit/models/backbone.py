"""The contract between backbones and their users: objectives, monitors, the engine, evaluations.

Three classes, each a subclass of the one before: any network with features; one that can replace
hidden patches with a token; one that can leave them out. An objective declares which it needs
(checked by `hides` on the config), so a convolutional network can train with DINO but not with MAE.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor, nn

from ssl_vit.models.config import BackboneConfig
from ssl_vit.models.patches import take

# B images, N patches, K encoded patches, R registers, D width.


class Features(NamedTuple):
    """Output of a backbone for a batch, after its final norm."""

    cls: Tensor
    """(B, D) one vector per image: the class token, or the mean of the last feature map."""
    registers: Tensor
    """(B, R, D) register tokens; R may be 0."""
    patches: Tensor
    """(B, N, D) row-major over the grid; (B, K, D) where only K patches were encoded."""
    grid: tuple[int, int]
    """Patches (down, across); (1, K) where only K of them were encoded."""


class Backbone(nn.Module, ABC):
    """Any network that turns images into features."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Features of every patch.

        Args:
            images: (B, 3, H, W) normalized; H and W are multiples of ``config.stride``.
        """

    @abstractmethod
    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter for layer-wise decay, counted from 0 at the layer nearest the
        pixels.
        """

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """Modules for activation checkpointing and compilation, such as transformer blocks; each
        maps one tensor, and perhaps a bias of attention, to one tensor.
        """

    def freeze_first(self, count: int) -> None:
        """Do not train the first ``count`` units and what comes before them; 0: train all.

        Args:
            count: From 0 to the number of units.
        """
        for name, parameter in self.named_parameters():
            if count and self.layer_of(name) <= count:
                parameter.requires_grad = False

    def use_channels_last(self, channels_last: bool) -> None:
        """Whether convolutions, if there are any, get images with channels last in memory."""

    def class_attention(self, images: Tensor) -> Tensor | None:
        """(B, heads, N) attention of the class token in the last layer; None without one."""
        return None

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (down, across) of a batch of images.

        Raises:
            ValueError: The images are not a whole number of patches.
        """
        size, (height, width) = self.config.stride, images.shape[-2:]
        if height % size or width % size:
            raise ValueError(
                f"images of {height}×{width} pixels are not a whole number of {size}-pixel "
                f"patches; the nearest that fit are multiples of {size}"
            )
        return height // size, width // size


class TokenBackbone(Backbone):
    """A backbone in two stages, ``embed`` and ``encode``, so that an objective can hide patches
    between them.
    """

    @abstractmethod
    def embed(
        self, images: Tensor, hidden: Tensor | None = None, filler: Tensor | None = None
    ) -> Tensor:
        """Patch tokens with positions added; no pixel of a hidden patch reaches any of them.

        Args:
            images: (B, 3, H, W) normalized.
            hidden: (B, N) bool, true where a patch is hidden.
            filler: (D,) or broadcastable to (B, N, D): replaces the tokens of hidden patches (BEiT,
                iBOT, SimMIM).

        Returns:
            (B, N, D).
        """

    @abstractmethod
    def encode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Features:
        """Run the layers over patch tokens.

        Args:
            tokens: (B, N, D) from :meth:`embed`.
            grid: Patches (down, across) of the tokens; needed unless the config's ``hides`` is
                "drop".
        """

    @abstractmethod
    def encode_with_inner(
        self, tokens: Tensor, after: Collection[int], grid: tuple[int, int] | None = None
    ) -> tuple[Features, list[Tensor]]:
        """As :meth:`encode`, and the tokens at places inside the network, in one pass.

        Args:
            tokens: (B, N, D) from :meth:`embed`.
            after: For each place the number of blocks before it, from 0 to all; increasing.
            grid: As in :meth:`encode`.

        Returns:
            The features, and for each place (B, 1 + R + N, D) without the final norm: the class
            token, registers, patches.
        """

    def attention_bias(self, grid: tuple[int, int]) -> Tensor | None:
        """The bias that a ``Block`` after the backbone's needs for tokens of a grid: (heads, 1 + N,
        1 + N), gradients reach the backbone's table; None without relative positions.
        """
        return None

    def forward(
        self, images: Tensor, hidden: Tensor | None = None, filler: Tensor | None = None
    ) -> Features:
        """Features of every patch; arguments as in :meth:`embed`."""
        return self.encode(self.embed(images, hidden, filler), self.grid_of(images))


class SparseBackbone(TokenBackbone):
    """A backbone whose ``encode`` takes any K of the N tokens without a grid, if its config's
    ``hides`` is "drop"; requires global attention.
    """

    def embed_visible(self, images: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
        """As :meth:`embed`, for the visible patches only.

        Args:
            images: (B, 3, H, W) normalized.
            hidden: (B, N) bool, true where a patch is hidden.
            visible: (B, K) int64, the patches that are not.

        Returns:
            (B, K, D).
        """
        return take(self.embed(images, hidden), visible)
