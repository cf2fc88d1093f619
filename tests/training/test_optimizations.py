"""What each optimization does where losses cannot show it; test_engine.py shows that none moves
them.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VitConfig
from ssl_vit.models.stem import ConvStem
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.objective import Objective
from ssl_vit.training.config import EngineConfig
from ssl_vit.training.optimizations import apply_optimizations

MAE = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)


def build(**settings: Any) -> Objective:
    backbone = VitConfig(
        **{"width": 24, "depth": 2, "heads": 2, "patch_size": 4, "image_size": 16} | settings
    )
    torch.manual_seed(0)
    return build_objective(MAE, VisionTransformer(backbone), DataConfig(), total_steps=1)


def kept_tensors(module: nn.Module, tokens: torch.Tensor) -> int:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(tokens).sum()
    return len(kept)


def test_a_checkpointed_block_keeps_its_input_only_and_gives_the_same_gradients():
    plain, light = build(), build()
    apply_optimizations(light, EngineConfig(activation_checkpointing=True), "cpu")
    assert len(light.units()) == 3  # two of the backbone, one of the decoder
    tokens = torch.rand(2, 5, 24)
    for ours, theirs in zip(light.units()[:2], plain.units()[:2], strict=True):
        assert kept_tensors(ours, tokens) < kept_tensors(theirs, tokens) / 4
        for block in (ours, theirs):
            block(tokens).square().sum().backward()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(own.grad, other.grad)  # type: ignore[arg-type] - both have one


@pytest.mark.parametrize("compile", [False, True])
def test_a_checkpointed_block_leaves_out_the_same_samples_when_computed_again(compile: bool):
    plain, light = build(drop_path=0.4), build(drop_path=0.4)
    settings = EngineConfig(activation_checkpointing=True, compile=compile)
    in_step = apply_optimizations(light, settings, "cpu")
    found, drawn = [], torch.randn(10, 5, 24)
    for objective in (plain, light):
        torch.manual_seed(1)
        result = tokens = drawn.clone().requires_grad_()
        with in_step:
            for block in objective.units()[:2]:
                result = block(result)
            result.square().mean().backward()
        parameters = [p for block in objective.units()[:2] for p in block.parameters()]
        # The number after it: as much randomness was used.
        found.append([result, tokens.grad, torch.rand(1), *(p.grad for p in parameters)])
    for ours, theirs in zip(*reversed(found), strict=True):
        if compile:
            torch.testing.assert_close(ours, theirs)
        else:
            assert torch.equal(ours, theirs)


def test_every_block_is_compiled_and_only_in_a_step(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def compiled(forward: Any, **_: Any) -> Any:
        return lambda tokens: calls.append(tokens.shape) or forward(tokens)

    monkeypatch.setattr(torch, "compile", compiled)
    objective = build()
    in_step = apply_optimizations(objective, EngineConfig(compile=True), "cpu")
    objective.eval()  # as a teacher is
    with in_step:
        for block, width in zip(objective.units(), (24, 24, 16), strict=True):
            block(torch.rand(1, 3, width))
    assert [shape[-1] for shape in calls] == [24, 24, 16]
    objective.units()[0](torch.rand(1, 3, 24))
    assert len(calls) == 3


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_channels_last_reaches_the_convolutions_and_changes_nothing(stem: str):
    plain, other = build(stem=stem), build(stem=stem)
    apply_optimizations(other, EngineConfig(channels_last=True), "cpu")
    layouts = []
    (convolution, *_) = (m for m in other.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(other.backbone(images).cls, plain.backbone(images).cls)
    assert layouts == [True]
    assert isinstance(other.backbone.patch_embed, ConvStem) == (stem == "conv")


def test_tf32_is_what_was_said_on_a_gpu_and_left_alone_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
):
    matmul, convolutions = SimpleNamespace(allow_tf32=None), SimpleNamespace(allow_tf32=None)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", convolutions)
    for said in (True, False):
        apply_optimizations(build(), EngineConfig(tf32=said), "cuda")
        assert matmul.allow_tf32 is convolutions.allow_tf32 is said
        apply_optimizations(build(), EngineConfig(tf32=not said), "cpu")
        assert matmul.allow_tf32 is said


def test_names_of_parameters_stay():
    names = [name for name, _ in build().named_parameters()]
    objective = build()
    settings = EngineConfig(activation_checkpointing=True, compile=True, channels_last=True)
    apply_optimizations(objective, settings, "cpu")
    assert [name for name, _ in objective.named_parameters()] == names


def test_compiled_code_is_kept_by_kind_of_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        apply_optimizations(build(), EngineConfig(compile=True), "cpu")
        kind = torch.backends.cpu.get_cpu_capability()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / kind)
