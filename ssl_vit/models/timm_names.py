"""The names of timm's ViT and Beit, in both directions.

Our names are those of timm's ViT. timm's Beit, the network with relative positions, has other names
for LayerScale, SwiGLU's gate, the biases of queries and values and the tables of blocks; only with
relative positions is anything renamed.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_vit.models.config import VitConfig

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"rel_pos_bias.{_TABLE}"
_BACKBONE = "backbone."

# Ours → timm's Beit's, and back.
_TO_BEIT = (
    (r"^rel_pos_bias\.(\d+)\.", r"blocks.\1.attn."),
    (r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
    (r"^(blocks\.\d+\.attn)\.qkv\.([qv]_bias)$", r"\1.\2"),
)
_FROM_BEIT = (
    (rf"^blocks\.(\d+)\.attn\.({_TABLE})$", r"rel_pos_bias.\1.\2"),
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+\.attn)\.([qv]_bias)$", r"\1.qkv.\2"),
)
# Not part of a backbone: classifiers, and what older versions of timm kept of the grid.
_LEFT_OUT = re.compile(r"^(head|fc_norm|attn_pool)\.|(^|\.)relative_position_index$")


def to_timm(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """The state dict of a backbone with the names of timm's ViT, or, with relative positions, of
    timm's Beit with ``use_abs_pos_emb=False``, ``use_fc_norm=False`` and, by
    ``relative_tables``, ``use_shared_rel_pos_bias`` or ``use_rel_pos_bias``.
    """
    if config.position != "relative":
        return dict(state)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        gate = re.fullmatch(r"(.*\.mlp\.fc1)\.(weight|bias)", name)
        if gate and config.feed_forward == "swiglu":
            halves = zip(("g", "x"), value.chunk(2), strict=True)
            # Copies, because safetensors rejects tensors that share memory.
            found |= {f"{gate[1]}_{letter}.{gate[2]}": half.clone() for letter, half in halves}
        else:
            found[_renamed(name, _TO_BEIT)] = value
    return found


def classifier_to_timm(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """The state dict of a backbone with its head, named as timm's network of the same pooling; the
    backbone's tensors have `backbone.` in front. A last norm that the head's replaces is left out,
    as in timm.
    """
    own = {name: value for name, value in state.items() if not name.startswith(_BACKBONE)}
    inner = {
        name.removeprefix(_BACKBONE): value
        for name, value in state.items()
        if name.startswith(_BACKBONE)
    }
    found = to_timm(inner, config) | own
    if any(name.startswith("fc_norm.") for name in own):
        found = {name: value for name, value in found.items() if not name.startswith("norm.")}
    return found


def from_timm(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """The inverse of :func:`to_timm`, for a backbone of this config; our own names stay.

    A shared table becomes one in every block if the config says so. Classifiers are left out. A
    Beit whose only norm comes after its mean over patches (``fc_norm``, timm's default) gets it as
    its final norm: the mean of our normed patches is close to their normed mean, but not the same.
    """
    found = {name: value for name, value in state.items() if not _LEFT_OUT.search(name)}
    if config.position != "relative":
        return found
    if not any(name.startswith("norm.") for name in state):
        found |= {
            name.removeprefix("fc_"): value
            for name, value in state.items()
            if name.startswith("fc_norm.")
        }
    found = {_renamed(name, _FROM_BEIT): value for name, value in found.items()}
    for name in [name for name in found if ".mlp.fc1_g." in name]:
        gate, value = name, name.replace("fc1_g", "fc1_x")
        if value in found:
            halves = [found.pop(gate), found.pop(value)]
            found[name.replace("fc1_g", "fc1")] = torch.cat(halves)
    if config.relative_tables == "per_block" and _SHARED_TABLE in found:
        shared = found.pop(_SHARED_TABLE)
        found |= {f"rel_pos_bias.{block}.{_TABLE}": shared for block in range(config.depth)}
    return found


def source_of(name: str, theirs: VitConfig) -> str:
    """The name under which the weights of a backbone with config ``theirs`` have the tensor
    ``name``, which may have the name of its owner in front: a table of a block may be taken from a
    shared one.
    """
    if theirs.relative_tables == "shared":
        return re.sub(rf"(^|\.)rel_pos_bias\.\d+\.{_TABLE}$", rf"\1{_SHARED_TABLE}", name)
    return name


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
