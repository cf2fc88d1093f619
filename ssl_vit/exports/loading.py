"""Loads an export as a network that is ready for images."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ssl_vit.cost.counting import backbone_parameters
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import (
    CLASSIFIER_WEIGHTS,
    INFO_FILE,
    TOKENIZER_WEIGHTS,
    WEIGHTS_FILE,
    ExportInfo,
    TokenizerInfo,
    find_export,
    read_classifier_info,
    read_export_info,
    read_tokenizer_info,
)
from ssl_vit.exports.preprocess import Preprocess
from ssl_vit.files import spelled_in_utf8
from ssl_vit.foreign import first_line
from ssl_vit.models.backbone import Backbone
from ssl_vit.models.build import build_backbone
from ssl_vit.models.timm_names import classifier_to_timm, from_timm
from ssl_vit.objectives.classification.head import Classifier
from ssl_vit.objectives.tokenizer.network import TokenizerNetwork

Network = TypeVar("Network", bound=torch.nn.Module)

_HEAD = ("fc_norm.", "attn_pool.", "head.")


def load_backbone(path: Path | str) -> Backbone:
    """The exported backbone, in evaluation mode on the CPU.

    Args:
        path: A run folder (its newest export), an export folder, or the safetensors file.

    Returns:
        A model on images (B, 3, H, W) as its ``preprocess(images, size=None)`` makes them of paths
        or PIL images; see ``exports.preprocess``.

    Raises:
        UserError: There is no export, or its files do not match.
    """
    folder = find_export(path)
    info = read_export_info(folder)
    file = folder / WEIGHTS_FILE
    try:
        with spelled_in_utf8(file) as place:
            state = load_file(place)
        count = sum(tensor.numel() for tensor in state.values())
        # Checked before memory is allocated for a network that does not match the file.
        if count < (wanted := backbone_parameters(info.backbone)):
            raise RuntimeError(f"{count:,} values, but {INFO_FILE} describes {wanted:,} parameters")
        odd = [name for name, tensor in state.items() if not tensor.is_floating_point()]
        if odd:
            raise RuntimeError(f"{odd[0]} has type {str(state[odd[0]].dtype)[6:]}")
        model = build_backbone(info.backbone)
        model.load_state_dict(from_timm(state, info.backbone))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"cannot load {file}: {first_line(error)}", "export again") from None
    return _with_preprocess(model, info).eval()


def load_tokenizer(path: Path | str) -> TokenizerNetwork:
    """The exported tokenizer, in evaluation mode on the CPU: normalized images (B, 3, H, W) to
    (B, N) int64 codes.

    Args:
        path: A run folder (its newest export), an export folder, or a file in one.

    Raises:
        UserError: There is none, or its files do not match.
    """
    folder = find_export(path)
    info, file = read_tokenizer_info(folder), folder / TOKENIZER_WEIGHTS
    try:
        with spelled_in_utf8(file) as place:
            state = load_file(place)
        # Before memory is allocated for a network that does not match the file.
        check_state(state, _tokenizer_shapes(info))
        if not state["codebook.started"]:
            raise RuntimeError("it was exported before its codes were placed; use a later export")
        model = TokenizerNetwork(build_backbone(info.backbone), info.codes)
        # Written as float32 like all tensors, this flag among them.
        state["codebook.started"] = state["codebook.started"].long()
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(
            f"cannot load {file}: {first_line(error)}",
            "give another export of the run that trained it",
        ) from None
    return model.eval()


def load_classifier(path: Path | str) -> Classifier:
    """The exported backbone with its head, in evaluation mode on the CPU.

    Args:
        path: A run folder (its newest export), an export folder, or a file in one.

    Returns:
        A model on images (B, 3, H, W) as its ``preprocess(images, size=None)`` makes them; it gives
        (B, C) float32 logits and (B, D) pooled features. ``classes`` are the names of the logits.

    Raises:
        UserError: There is none, or its files do not match.
    """
    folder = find_export(path)
    info, file = read_classifier_info(folder), folder / CLASSIFIER_WEIGHTS
    try:
        with spelled_in_utf8(file) as place:
            state = load_file(place)
        with torch.device("meta"):
            model = Classifier(build_backbone(info.backbone), info.pooling, len(info.classes))
        wanted = classifier_to_timm(model.state_dict(), info.backbone)
        check_state(state, {name: tensor.shape for name, tensor in wanted.items()})
        model = Classifier(build_backbone(info.backbone), info.pooling, len(info.classes))
        inner = from_timm(_without(state, "fc_norm."), info.backbone)
        # A norm that the head's replaces is not in the file, and is not used.
        spare = {k: v for k, v in model.backbone.state_dict().items() if k.startswith("norm.")}
        model.backbone.load_state_dict(spare | inner)
        own = {name: value for name, value in state.items() if name.startswith(_HEAD)}
        model.load_state_dict(own, strict=False)  # compared above
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load {file}: {first_line(error)}", "export again") from None
    setattr(model, "classes", info.classes)  # noqa: B010 - torch's stubs allow tensors and modules
    return _with_preprocess(model, info).eval()


def _with_preprocess(model: Network, info: ExportInfo) -> Network:
    size = info.backbone.height_width
    preprocess = Preprocess(size, info.pixel_mean, info.pixel_std, info.values)
    setattr(model, "preprocess", preprocess)  # noqa: B010 - torch's stubs allow tensors and modules
    return model


def _without(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def _tokenizer_shapes(info: TokenizerInfo) -> dict[str, torch.Size]:
    """The tensors that the file of a tokenizer has."""
    with torch.device("meta"):
        model = TokenizerNetwork(build_backbone(info.backbone), info.codes)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_state(state: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> None:
    """Compare tensors from a file with those of the network that is described.

    Raises:
        RuntimeError: Tensors are missing, left over, of another shape or type, or not finite;
            names the first few.
    """
    odd = [name for name in shapes | state if name not in shapes or name not in state]
    odd += [name for name in shapes if name in state and state[name].shape != shapes[name]]
    if odd:
        raise RuntimeError(
            f"{len(odd)} tensors are missing, left over or of another shape ({', '.join(odd[:3])})"
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise RuntimeError(f"{name} has type {str(tensor.dtype)[6:]}")
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{name} has values that are not finite")
