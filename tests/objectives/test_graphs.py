"""torch.compile sees each objective's forward pass as one graph: nothing in it goes back to Python,
or waits for a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssl_vit.data.config import DataConfig
from ssl_vit.errors import UserError
from ssl_vit.models.block import Block
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.training.config import EngineConfig
from ssl_vit.training.optimizations import apply_optimizations
from tests.objectives.test_dino import batch_of, dino_config, make
from tests.training import engine_worker


def block() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return Block(32, 2, drop_path=0.3), (torch.rand(8, 5, 32),)


def mae() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    backbone = VisionTransformer(engine_worker.BACKBONE)
    objective = build_objective(engine_worker.OBJECTIVE, backbone, DataConfig(), total_steps=1)
    return objective, (engine_worker.whole_batch(0), 0)


def dino() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    config = dino_config()
    return make(config), (batch_of(config), 3)


@pytest.mark.parametrize("make_case", [block, mae, dino])
def test_a_forward_pass_is_one_graph(
    make_case: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]],
):
    forward, inputs = make_case()
    found = torch._dynamo.explain(forward)(*inputs)
    reasons = [f"{reason.user_stack[-1]}: {reason.reason}" for reason in found.break_reasons]
    assert (found.graph_count, reasons) == (1, [])


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch):
    """Graphs are traced as ever, but run by torch instead of by compiled code."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with torch._dynamo.config.patch(recompile_limit=8):  # torch's default
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("changes", [{}, {"ibot_prototypes": 12, "ibot_bottleneck": 6}])
def test_other_numbers_of_masked_patches_compile_nothing_anew(changes: dict[str, int]):
    config = dino_config(ibot_weight=1.0, koleo_weight=0.1, **changes)
    plain, compiled, batch = make(config), make(config), batch_of(config)
    both = list(zip(plain.parameters(), compiled.parameters(), strict=True))
    in_step = apply_optimizations(compiled, EngineConfig(compile=True), "cpu")
    for step, padding in enumerate((0, 5, 0, 9, 5, 0, 2, 9, 0, 5)):
        padded = batch._replace(
            masked=F.pad(batch.masked, (0, padding)), weights=F.pad(batch.weights, (0, padding))
        )
        with in_step, torch._dynamo.config.patch(error_on_recompile=step > 0):
            found = compiled(padded, step)
            found.loss.backward()
        expected = plain(padded, step)
        expected.loss.backward()
        torch.testing.assert_close(found.loss, expected.loss)
        torch.testing.assert_close(found.metrics, expected.metrics)
        for ours, theirs in both:
            if theirs.grad is not None:
                assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()
        plain.zero_grad()
        compiled.zero_grad()


@pytest.mark.usefixtures("quickly")
def test_every_block_may_have_its_own_rate_of_stochastic_depth():
    backbone = engine_worker.BACKBONE.model_copy(
        update={"depth": 10, "drop_path": 0.5, "drop_path_rule": "linear"}
    )
    objective = build_objective(
        engine_worker.OBJECTIVE, VisionTransformer(backbone), DataConfig(), total_steps=1
    )
    batch = engine_worker.whole_batch(0)
    assert len(set(backbone.drop_path_rates)) > torch._dynamo.config.recompile_limit
    with apply_optimizations(objective, EngineConfig(compile=True), "cpu"):
        for _ in range(2):
            objective(batch, 0).loss.backward()


@pytest.mark.usefixtures("quickly")
def test_a_compiled_mae_computes_the_same():
    batch = engine_worker.whole_batch(0)
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        backbone = VisionTransformer(engine_worker.BACKBONE)
        objective = build_objective(engine_worker.OBJECTIVE, backbone, DataConfig(), total_steps=1)
        with apply_optimizations(objective, EngineConfig(compile=compile), "cpu"):
            losses.append(objective(batch, 0).loss)
    torch.testing.assert_close(losses[1], losses[0])


def test_where_torch_cannot_compile_a_run_goes_on_without_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
):
    def failing(*_: Any) -> Any:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=failing))
    monkeypatch.setattr(EngineConfig, "compiles_on", lambda *_: True)
    batch = engine_worker.whole_batch(0)
    for setting in ("auto", True):
        backbone = VisionTransformer(engine_worker.BACKBONE)
        objective = build_objective(engine_worker.OBJECTIVE, backbone, DataConfig(), total_steps=1)
        expected = objective(batch, 0).loss
        in_step = apply_optimizations(objective, EngineConfig(compile=setting), "cpu")
        if setting is True:
            with in_step, pytest.raises(UserError, match="no compiler here"):
                objective(batch, 0)
            continue
        with in_step:
            assert torch.equal(objective(batch, 0).loss, expected)
        note = in_step.take_note()
        assert note == "not compiled, since torch cannot: RuntimeError: no compiler here"
        assert not in_step.take_note()


def test_auto_compiles_on_a_gpu_below_zero_3():
    for stage, device, expected in ((1, "cuda", True), (3, "cuda", False), (1, "cpu", False)):
        assert EngineConfig(zero_stage=stage).compiles_on(device) is expected
        assert EngineConfig(zero_stage=min(stage, 2), compile=True).compiles_on(device)
        assert not EngineConfig(zero_stage=stage, compile=False).compiles_on(device)
