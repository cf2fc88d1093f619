"""Fine-tuning under DeepSpeed against a plain loop of twenty steps: every ZeRO stage, two
processes, several micro-batches per step; and what cannot be learned.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssl_vit.data.dataset import TrainingBatches
from ssl_vit.data.labels import hold_out
from ssl_vit.data.mixture import build_order
from ssl_vit.data.sources import open_shards
from ssl_vit.data.subset import SubsetOfShards
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import ClassificationConfig
from ssl_vit.recipes import read_config
from ssl_vit.run.data import sizes_of
from ssl_vit_data_prep.pack import pack_images
from ssl_vit_data_prep.shard_writer import PackOptions
from tests.command_line import losses, ssl_vit, torchrun
from tests.synthetic import write_images, write_shards

RECIPE, STEPS = "finetune_mae_vitb16", 20
FINETUNE = ("pretrain", RECIPE, "--smoke", "--run")
UNMIXED = ("objective.mixup=0", "objective.cutmix=0")


class Learned(NamedTuple):
    """Result of a run."""

    losses: list[float]
    classifier: dict[str, Tensor]
    """Weights of the exported average."""


def depth_of(name: str, depth: int) -> int:
    """Layers above a parameter, by its name."""
    if "backbone." not in name:
        return 0
    if ".blocks." in name:
        return depth - int(name.split(".blocks.")[1].split(".")[0])
    return depth + 1


def plain_loop(words: tuple[str, ...]) -> Learned:
    """With torch's AdamW, rates by name, and an average by hand; only the network, the loss and the
    batches are ours.
    """
    config = read_config(RECIPE, words, is_smoke=True)
    whole = open_shards(config.data.sources)
    counts = np.bincount(whole.labels).tolist()
    settings = config.objective.fit_to_classes(whole.classes, tuple(counts))
    assert isinstance(settings, ClassificationConfig)
    shards = SubsetOfShards(whole, hold_out(whole.labels, 0.1)[0])
    order = build_order(sizes_of(shards), config.data, config.seed)
    maker = TrainingBatches(shards, build_views(settings, config.backbone), config.seed)
    torch.manual_seed(config.seed)
    model = VisionTransformer(config.backbone)
    objective = build_objective(settings, model, config.data, STEPS)
    network = objective.network
    assert isinstance(network, torch.nn.Module)
    named = {name: each for name, each in network.named_parameters() if each.requires_grad}
    average = {name: each.detach().clone() for name, each in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [{"params": [each]} for each in named.values()], betas=config.optimizer.betas, eps=1e-8
    )
    assert config.optimizer.learning_rate_rule == "absolute"  # as all smoke runs
    peak, last = config.optimizer.base_learning_rate, config.optimizer.final_learning_rate
    found = []
    for step in range(STEPS):
        share = (1 + math.cos(math.pi * (step - 4) / (STEPS - 4))) / 2
        rate = last + (peak - last) * share if step >= 4 else peak * (step + 1) / 4
        for group, (name, each) in zip(optimizer.param_groups, named.items(), strict=True):
            group["lr"] = rate * settings.layer_decay ** depth_of(name, config.backbone.depth)
            is_matrix = each.ndim > 1 and not name.endswith(("_token", "pos_embed"))
            group["weight_decay"] = config.optimizer.weight_decay if is_matrix else 0.0
        refs = order.update(step, range(config.data.lanes))
        memory = torch.empty(maker.num_bytes(len(refs)), dtype=torch.uint8)
        loss = objective(maker.make(refs, memory).batch, step).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        momentum = min(settings.ema_momentum, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            average[name] = momentum * average[name] + (1 - momentum) * value.detach()
        found.append(loss.item())
    return Learned(found, average)


def check(run: Path, expected: Learned) -> None:
    assert [loss for _, loss, _ in losses(run)] == pytest.approx(expected.losses, abs=1e-4), run
    file = run / "exports" / f"step_{STEPS:08d}" / "classifier.safetensors"
    for name, value in load_file(file).items():
        theirs = expected.classifier.get(name)
        if theirs is None:
            theirs = expected.classifier[f"backbone.{name}"]
        torch.testing.assert_close(value, theirs, atol=2e-5, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The only validation is after the last step, so its weights are those exported."""
    shards = write_shards(tmp_path_factory.mktemp("data"), per_class=24)
    return (
        *(f"data.shards={shards}", f"schedule.length={STEPS}", "schedule.warmup=4"),
        *("objective.ema_momentum=0.8", "objective.class_weights=auto", "backbone.drop_path=0"),
        *("log.every_steps=1", f"objective.validate_every_steps={STEPS}"),
    )


def test_mixed_images_are_learned_as_in_a_plain_loop(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    expected = plain_loop(words)
    assert expected.losses[-1] != expected.losses[0]
    for stage in (0, 3):
        run = tmp_path / f"stage{stage}"
        stage_words = (f"engine.zero_stage={stage}", "engine.micro_batch_size=8")
        done = ssl_vit(*FINETUNE, run, *words, *stage_words)
        assert done.returncode == 0, done.stderr
        check(run, expected)


def test_several_micro_batches_and_processes_are_one_batch(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """Without mixing, which is within a micro-batch."""
    expected = plain_loop((*words, *UNMIXED))
    for stage in (1, 2):
        run = tmp_path / f"two{stage}"
        stage_words = (f"engine.zero_stage={stage}", "engine.micro_batch_size=2")
        done = torchrun(2, *FINETUNE, run, *words, *UNMIXED, *stage_words)
        assert done.returncode == 0, done.stderr
        check(run, expected)


def test_labels_that_say_nothing_cannot_be_learned(tmp_path: Path) -> None:
    """Validation images of noise are told apart by chance, however well train is memorized."""
    write_images(tmp_path / "images", 80, ("a", "b"))
    pack_images(tmp_path / "images", tmp_path / "shards", PackOptions(400_000))
    words = (f"data.shards={tmp_path / 'shards'}", "objective.held_out=0.5", *UNMIXED)
    words += ("objective.augment=''", "objective.random_erasing=0", "objective.min_crop_area=1")
    words += ("objective.horizontal_flip=0", "objective.layer_decay=1", "backbone.drop_path=0")
    words += ("optimizer.base_learning_rate=3e-3", "schedule.length=150", "log.every_steps=1")
    words += ("objective.label_smoothing=0", "objective.validate_every_steps=25")
    done = ssl_vit(*FINETUNE, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    learned = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(learned[-10:]) < 0.35
    lines = (tmp_path / "run/validations.jsonl").read_text().splitlines()
    found = [json.loads(line)["validation/accuracy"] for line in lines]
    assert len(found) == 6
    # 80 images: three standard deviations of a fair coin.
    assert all(abs(accuracy - 0.5) < 3 * 0.5 / math.sqrt(80) for accuracy in found)
