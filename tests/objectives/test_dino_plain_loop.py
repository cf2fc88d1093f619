"""DINOv2 under DeepSpeed against a loop of fifteen lines: every ZeRO stage, two processes, and
several micro-batches per step, including the teacher.
"""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.mixture import build_order
from ssl_vit.data.sources import open_shards
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.recipes import read_config
from ssl_vit.run.data import sizes_of
from tests.command_line import losses, ssl_vit, torchrun
from tests.synthetic import write_shards

RECIPE, STEPS = "dinov2_vitl14_in22k", 5


class Learned(NamedTuple):
    """Result of a run."""

    losses: list[float]
    teacher: dict[str, Tensor]
    """Weights of the exported backbone."""


def plain_loop(words: tuple[str, ...]) -> Learned:
    """The run with torch's AdamW; only the objective and its batches are ours."""
    config = read_config(RECIPE, words, is_smoke=True)
    shards = open_shards(config.data.sources)
    order = build_order(sizes_of(shards), config.data, config.seed)
    maker = TrainingBatches(shards, build_views(config.objective, config.backbone), config.seed)
    torch.manual_seed(config.seed)
    model = VisionTransformer(config.backbone)
    objective = build_objective(config.objective, model, config.data, STEPS)
    groups, settings = objective.parameter_groups(), config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters} for group in groups], betas=settings.betas, eps=1e-8
    )
    found = []
    for step in range(STEPS):
        # One step of warm-up, then half a cosine.
        rate = (1 + math.cos(math.pi * (step - 1) / (STEPS - 1))) / 2 if step else 1.0
        peak, last = settings.base_learning_rate, settings.final_learning_rate
        decay = (1 - math.cos(math.pi * step / STEPS)) / 2
        decay = (
            settings.weight_decay + (settings.final_weight_decay - settings.weight_decay) * decay
        )
        for target, group in zip(optimizer.param_groups, groups, strict=True):
            is_frozen = step < group.frozen_steps
            target["lr"] = (
                0 if is_frozen else group.learning_rate_scale * (last + (peak - last) * rate)
            )
            target["weight_decay"] = decay * group.weight_decay_scale
        refs = order.update(step, range(config.data.lanes))
        memory = torch.empty(maker.num_bytes(len(refs)), dtype=torch.uint8)
        loss = objective(maker.make(refs, memory).batch, step).loss
        loss.backward()
        trained = [parameter for group in groups for parameter in group.parameters]
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step)
        found.append(loss.item())
    return Learned(found, objective.exported_backbone.state_dict())


def check(run: Path, expected: Learned) -> None:
    assert [loss for _, loss, _ in losses(run)] == pytest.approx(expected.losses, abs=1e-4), run
    exported = load_file(run / "exports" / f"step_{STEPS:08d}" / "backbone.safetensors")
    assert exported.keys() == expected.teacher.keys()
    for name, value in expected.teacher.items():
        torch.testing.assert_close(exported[name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("centering", ["sinkhorn", "average"])
def test_dinov2_equals_the_plain_loop_at_every_stage_and_number_of_processes(
    tmp_path: Path, centering: str
):
    shards = write_shards(tmp_path / "data", per_class=12)
    # KoLeo compares the images of one process, and stochastic depth depends on the rank.
    words = (f"data.shards={shards}", "objective.koleo_weight=0", "backbone.drop_path=0")
    words += (f"schedule.length={STEPS}", "schedule.warmup=1", f"objective.centering={centering}")
    # Two steps with frozen prototypes, and a teacher that changes enough to be compared.
    words += ("objective.freeze_prototypes=0.4", "objective.momentum=0.9")
    expected = plain_loop(words)
    begin = ("pretrain", RECIPE, "--smoke", "--run")
    # A moving average is over whole steps; Sinkhorn-Knopp over one micro-batch of all ranks.
    micro_batch = 2 if centering == "average" else 8
    for stage in (0, 3):
        run = tmp_path / f"one{stage}"
        alone = (f"engine.zero_stage={stage}", f"engine.micro_batch_size={micro_batch}")
        done = ssl_vit(*begin, run, *words, *alone)
        assert done.returncode == 0, done.stderr
        check(run, expected)
    for stage in (1, 2, 3):
        run = tmp_path / f"two{stage}"
        done = torchrun(2, *begin, run, *words, f"engine.zero_stage={stage}")
        assert done.returncode == 0, done.stderr
        check(run, expected)
