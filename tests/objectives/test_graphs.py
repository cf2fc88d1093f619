"""torch.compile sees each objective's forward pass as one graph: nothing in it goes back to Python,
or waits for a GPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssl_vit.data.config import DataConfig
from ssl_vit.models.block import Block
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
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
