"""Blocks that are never trained, and backbones that are not trained at first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.cost.counting import count_cost, count_parameters
from ssl_vit.cost.network import Arithmetic
from ssl_vit.errors import UserError
from ssl_vit.exports.loading import load_backbone
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.config import ClassificationConfig, MaeConfig
from ssl_vit.objectives.objective import ParameterGroup
from ssl_vit.recipes import read_config
from ssl_vit.training.optimizer import freeze_at_first
from tests.command_line import ssl_vit

VIT = VitConfig(width=48, depth=3, heads=3, patch_size=8, image_size=32)


@pytest.mark.parametrize("position", ["sincos", "learned", "relative"])
def test_the_first_units_and_what_comes_before_are_frozen(position: str) -> None:
    network = build_backbone(VIT.model_copy(update={"position": position}))
    network.freeze_first(0)
    assert all(each.requires_grad for each in network.parameters())
    network.freeze_first(2)
    trained = {name for name, each in network.named_parameters() if each.requires_grad}
    last = ("blocks.2.", "norm.", "rel_pos_bias.2.")
    assert trained == {name for name, _ in network.named_parameters() if name.startswith(last)}
    assert not network.cls_token.requires_grad  # type: ignore[union-attr]


def test_groups_are_split_where_the_backbone_begins() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    groups = [
        ParameterGroup("decayed", tuple(weights[:3]), 0.5, 1.0),
        ParameterGroup("prototypes", (weights[3],), frozen_steps=9),
    ]
    assert freeze_at_first(groups, weights[1:2], 0) == groups
    found = freeze_at_first(groups, weights[1:2], 5)
    assert [(each.name, len(each.parameters), each.frozen_steps) for each in found] == [
        ("decayed_backbone", 1, 5),
        ("decayed", 2, 0),
        ("prototypes", 1, 9),
    ]
    assert found[0].parameters == (weights[1],)
    assert found[0].learning_rate_scale == 0.5


def test_more_units_than_there_are_are_refused() -> None:
    words = ["optimizer.freeze_units=13"]
    with pytest.raises(UserError, match="freeze_units=13 is more than the 12 blocks"):
        read_config("mae_vitb16", words, is_smoke=False)


def test_what_is_frozen_costs_less() -> None:
    config = ClassificationConfig(pooling="cls", mixup=0, cutmix=0)
    arithmetic = Arithmetic("float32", "cpu")
    costs = [count_cost(config, VIT, arithmetic, frozen) for frozen in range(4)]
    steps = [cost.step_flops for cost in costs]
    kept = [cost.kept_bytes for cost in costs]
    assert steps == sorted(steps, reverse=True)
    assert kept == sorted(kept, reverse=True)
    # All blocks frozen: little more than a forward pass, a third of all (the stem counts whole).
    assert steps[3] < 0.45 * steps[0]
    whole, frozen = (count_parameters(MaeConfig(), VIT, count) for count in (0, 3))
    assert whole.trained + whole.frozen == frozen.trained + frozen.frozen
    assert frozen.backbone == 2 * 48  # the last norm


def weights_of(run: Path) -> dict[str, Tensor]:
    return dict(load_backbone(run).named_parameters())


@pytest.mark.parametrize(
    ("recipe", "stage"), [("mae_vits16", 1), ("dino_vits16", 3), ("finetune_small_data", 2)]
)
def test_frozen_units_stay_as_they_were(
    recipe: str, stage: int, shards: Path, tmp_path: Path
) -> None:
    words = (f"data.shards={shards}", "schedule.length=3", "schedule.warmup=1")
    command = ("pretrain", recipe, "--smoke", "--run")
    first = tmp_path / "first"
    done = ssl_vit(*command, first, *words, "export.every_steps=3")
    assert done.returncode == 0, done.stderr
    more = (f"resume_from={first / 'exports/step_00000003'}", f"engine.zero_stage={stage}")
    second = tmp_path / "second"
    done = ssl_vit(*command, second, *words, *more, "optimizer.freeze_units=1", "seed=1")
    assert done.returncode == 0, done.stderr
    before, after = weights_of(first), weights_of(second)
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in same if not name.startswith("norm.")} == {
        name
        for name in before
        if not name.startswith(("norm.", "blocks.1")) and name != "mask_token"
    }


def test_a_backbone_waits_for_its_head(shards: Path, tmp_path: Path) -> None:
    words = (f"data.shards={shards}", "schedule.length=4", "schedule.warmup=0", "engine.workers=0")
    states = []
    for steps in (3, 4):
        run = tmp_path / f"run{steps}"
        done = ssl_vit(
            *("pretrain", "finetune_small_data", "--smoke", "--run", run, *words),
            *(f"optimizer.freeze_steps={steps}", "objective.held_out=0", "export.every_steps=3"),
        )
        assert done.returncode == 0, done.stderr
        states.append([weights_of(run / f"exports/step_{step:08d}") for step in (3, 4)])
    (third, fourth), (frozen, still) = states
    for name, value in frozen.items():
        if name.startswith("norm."):
            continue  # exported is the head's
        assert torch.equal(still[name], value)
        assert torch.equal(third[name], value)
    assert not torch.equal(fourth["blocks.0.attn.qkv.weight"], third["blocks.0.attn.qkv.weight"])
