"""The encoder of DALL-E's discrete VAE, from a file that the user has.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", arXiv 2102.12092; the tokenizer of Bao et
al. 2021 (BEiT). Names of tensors are those of the released encoder's state dict.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.objectives.given import DalleConfig

# B images, N patches of 8 × 8 pixels, K codes.

_GROUPS, _BLOCKS = 4, 2


class DalleEncoder(nn.Module):
    """A convolution, four groups of two residual blocks with poolings in between, and logits.

    Args:
        config: Number of codes and channels.
    """

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        hidden = config.hidden
        groups: dict[str, nn.Module] = {"input": _Conv(3, hidden, 7)}
        before = hidden
        for group in range(_GROUPS):
            after = hidden * 2**group
            blocks = [_Block(before if block == 0 else after, after) for block in range(_BLOCKS)]
            named = {f"block_{number}": block for number, block in enumerate(blocks, 1)}
            groups[f"group_{group + 1}"] = nn.ModuleDict(named)
            before = after
        groups["output"] = nn.ModuleDict({"conv": _Conv(before, config.width, 1)})
        self.blocks = nn.ModuleDict(groups)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0.1, 0.9] → (B, K, H / 8, W / 8)."""
        maps = self.blocks["input"](images)
        for group in range(1, _GROUPS + 1):
            if group > 1:
                maps = F.max_pool2d(maps, 2)
            for block in self.blocks.get_submodule(f"group_{group}").children():
                maps = block(maps)
        return self.blocks.get_submodule("output.conv")(F.relu(maps))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0.1, 0.9] → (B, N) int64, the most likely codes."""
        return self.logits(images).argmax(dim=1).flatten(1)

    def code_vectors(self) -> Tensor:
        """(K, C), near to each other for codes of similar patches."""
        return self.blocks.get_parameter("output.conv.w").flatten(1)


class _Conv(nn.Module):
    """A convolution that keeps the size, with the released names of its tensors."""

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(after, before, size, size))
        self.b = nn.Parameter(torch.zeros(after))
        nn.init.normal_(self.w, std=(before * size**2) ** -0.5)

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.w, self.b, padding=self.w.shape[-1] // 2)


class _Block(nn.Module):
    """x + 1/64 of four convolutions of x with a quarter of the channels in between."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        inner = after // 4
        sizes = ((before, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, after, 1))
        named = {f"conv_{number}": _Conv(*size) for number, size in enumerate(sizes, 1)}
        self.res_path = nn.ModuleDict(named)
        self.id_path = _Conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        branch = maps
        for conv in self.res_path.children():
            branch = conv(F.relu(branch))
        return self.id_path(maps) + branch / (_GROUPS * _BLOCKS) ** 2
