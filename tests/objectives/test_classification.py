"""Classification: mixed images and targets, weights, groups and averages against loops and timm."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Sample
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.classification.objective import Classification, mix_images
from ssl_vit.objectives.classification.views import LabeledBatch, draw_beta, draw_mix
from ssl_vit.objectives.config import ClassificationConfig

BACKBONE = VitConfig(width=32, depth=2, heads=2, patch_size=8, image_size=(32, 48))
CLASSES = {"classes": ("a", "b", "c"), "class_counts": (6, 1, 2)}


def build(backbone: VitConfig = BACKBONE, **settings: Any) -> Classification:
    torch.manual_seed(0)
    config = ClassificationConfig(**{**CLASSES, **settings})
    objective = build_objective(config, build_backbone(backbone), DataConfig(), 10)
    assert isinstance(objective, Classification)
    return objective


def batch_of(count: int, config: ClassificationConfig, labels: Any = None) -> LabeledBatch:
    views, rng = build_views(config, BACKBONE), np.random.default_rng(0)
    draws = [views.draw(40, 50, rng) for _ in range(count)]
    crops = [torch.from_numpy(rng.integers(0, 256, (1, count, 3, 32, 48), dtype=np.uint8))]
    labels = labels or [number % 3 for number in range(count)]
    samples = [Sample(number, label) for number, label in enumerate(labels)]
    return views.collate(crops, draws, samples)


def mixed_by_loop(images: Tensor, batch: LabeledBatch) -> Tensor:
    mixed = images.clone()
    for place in range(len(images)):
        other = images[len(images) - 1 - place]
        top, bottom, left, right = batch.boxes[place].tolist()
        if bottom > top:
            mixed[place, :, top:bottom, left:right] = other[:, top:bottom, left:right]
        else:
            share = batch.shares[place]
            mixed[place] = share * images[place] + (1 - share) * other
    return mixed


@pytest.mark.parametrize("settings", [{}, {"cutmix": 0.0}, {"mixup": 0.0}])
def test_images_are_mixed_as_a_loop_mixes_them(settings: dict[str, float]) -> None:
    batch = batch_of(7, ClassificationConfig(**settings))
    is_cut = batch.boxes[:, 1] > 0
    assert bool(is_cut.any()) == (settings != {"cutmix": 0.0})
    assert bool((~is_cut).any()) == (settings != {"mixup": 0.0})
    images = batch.images.float()
    found = mix_images(images, batch.shares, batch.boxes)
    torch.testing.assert_close(found, mixed_by_loop(images, batch))


def test_the_share_of_a_cut_image_is_the_area_that_is_left() -> None:
    config, rng = ClassificationConfig(mixup=0.0), np.random.default_rng(1)
    for _ in range(200):
        share, (top, bottom, left, right) = draw_mix(config, (32, 48), rng)
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 48
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / (32 * 48))


def test_switching_one_kind_off_leaves_the_other_as_it_was() -> None:
    rngs = [np.random.default_rng(2) for _ in range(2)]
    both = [draw_mix(ClassificationConfig(), (32, 32), rngs[0]) for _ in range(50)]
    assert {mix.is_cut for mix in both} == {True, False}
    none = [draw_mix(ClassificationConfig(mixup=0, cutmix=0), (32, 32), rngs[1]) for _ in range(9)]
    assert {mix.share for mix in none} == {1.0}


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_have_the_moments_of_a_beta_distribution(alpha: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.array([draw_beta(alpha, rng) for _ in range(8_000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / len(shares))
    assert shares.var() == pytest.approx(variance, rel=0.06)


def test_targets_are_those_of_timm() -> None:
    from timm.data.mixup import mixup_target

    objective = build()
    batch = batch_of(6, objective.config)
    expected = mixup_target(batch.labels, 3, batch.shares.unsqueeze(1), smoothing=0.1)
    torch.testing.assert_close(objective._targets(batch), expected)


def test_the_loss_is_that_of_a_loop_over_images_and_classes() -> None:
    for loss in ("cross_entropy", "binary"):
        objective = build(loss=loss, class_weights=(1.0, 0.5, 2.0)).eval()
        torch.nn.init.normal_(objective.network.head.weight)
        batch = batch_of(5, objective.config)
        images = mixed_by_loop(objective.pixel_scale(batch.images), batch)
        logits = objective.network(images)[0].double().detach()
        total, weights = 0.0, (1.0, 0.5, 2.0)
        for place, row in enumerate(logits):
            share, other = float(batch.shares[place]), len(logits) - 1 - place
            label, theirs = int(batch.labels[place]), int(batch.labels[other])
            if loss == "binary":
                there = {label, theirs} if 0 < share < 1 else {label if share else theirs}
                each = [F.logsigmoid(row[k] if k in there else -row[k]) for k in range(3)]
                mean = sum(weights[k] for k in there) / len(there)
                total -= mean * float(sum(each)) / 3
                continue
            for name, weight in enumerate(weights):
                target = share * (label == name) + (1 - share) * (theirs == name)
                target = 0.9 * target + 0.1 / 3
                total -= weight * target * float(row.log_softmax(dim=0)[name])
        found = objective(batch, 0).loss
        assert float(found) == pytest.approx(total / len(logits), rel=1e-5)


SEVERAL: dict[str, Any] = {"label_separator": ";", "loss": "binary", "class_counts": (2, 3, 1)}
SETS = ((), (0,), (0, 2), (1, 2))
TEXT = ";0;0,2;1,2"


def test_an_image_of_several_classes_is_a_yes_or_no_for_each() -> None:
    weights = (1.0, 0.5, 2.0)
    objective = build(**SEVERAL, label_sets=TEXT, class_weights=weights).eval()
    torch.nn.init.normal_(objective.network.head.weight)
    batch = batch_of(4, objective.config, [0, 1, 2, 3])
    images = mixed_by_loop(objective.pixel_scale(batch.images), batch)
    logits = objective.network(images)[0].double().detach()
    total, right = 0.0, 0
    for place, row in enumerate(logits):
        there: set[int] = set()
        for other, share in ((place, float(batch.shares[place])), (3 - place, 1.0)):
            if (other == place and share == 0) or (other != place and batch.shares[place] == 1):
                continue
            there |= set(SETS[other])  # labels are places
        for name in range(3):
            is_there = name in there
            weight = weights[name] if is_there else 1.0
            total -= weight * float(F.logsigmoid(row[name] if is_there else -row[name])) / 3
            right += bool(row[name] > 0) == is_there
    found = objective(batch, 0)
    assert float(found.loss) == pytest.approx(total / 4, rel=1e-5)
    assert float(found.metrics["accuracy"]) == pytest.approx(right / 12)
    described = objective.described()["classifier"]
    assert described["label_separator"] == ";"


def test_classes_of_labels_that_name_several_are_counted() -> None:
    config = ClassificationConfig(label_separator=";", loss="binary", class_weights="auto")
    labels = (";", "b", "a; b", "a;c;a")
    found = config.fit_to_classes(labels, (4, 3, 2, 1))
    assert found.classes == ("a", "b", "c")
    assert found.class_counts == (3, 5, 1)
    assert (found.label_sets, found.num_images) == (";1;0,1;0,2", 10)
    assert found.sets_of_labels() == [[], [1], [0, 1], [0, 2]]
    assert found.weights() == pytest.approx((7 / 3, 5 / 5, 9 / 1))
    absent = found.model_copy(update={"class_counts": (3, 5, 0)})
    assert absent.weights() == pytest.approx((7 / 3, 1.0, 1.0))
    assert found.fit_to_classes(labels, (4, 3, 2, 1)) == found  # a resumed run
    for labels, problem in (
        (("a", "a;a"), r"one class \(a\)"),
        (("a;b",), r"the same classes \(a, b\)"),
        ((";",), "of no class"),
        (("a|b", "c"), r"label_separator=; is in none of the labels \(a\|b, c\)"),
    ):
        with pytest.raises(ValueError, match=problem):
            config.fit_to_classes(labels, (3,) * len(labels))
    with pytest.raises(ValueError, match=r"add objective\.loss=binary"):
        ClassificationConfig(label_separator=";")


def test_automatic_weights_let_all_classes_count_the_same() -> None:
    config = ClassificationConfig(**CLASSES, class_weights="auto")  # type: ignore[arg-type]
    assert config.weights() == pytest.approx((9 / (3 * 6), 9 / (3 * 1), 9 / (3 * 2)))
    absent = config.model_copy(update={"class_counts": (6, 0, 2)}).weights()
    assert absent == pytest.approx((8 / 12, 0.0, 8 / 4))


@pytest.mark.parametrize(
    ("size", "decay", "rates"),
    [
        # By hand: 0.65^13, 0.65^12, 0.65^1; 0.75^25, 0.75^24, 0.75^1.
        ("base", 0.65, (0.00369720, 0.00568801, 0.65)),
        ("large", 0.75, (0.00075254, 0.00100339, 0.75)),
    ],
)
def test_layer_decay_is_that_of_a_table(
    size: str, decay: float, rates: tuple[float, float, float]
) -> None:
    with torch.device("meta"):
        objective = build(VitConfig(**VIT_SIZES[size]), layer_decay=decay)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found = {
        names[id(parameter)]: group.learning_rate_scale
        for group in objective.parameter_groups()
        for parameter in group.parameters
    }
    depth = VIT_SIZES[size]["depth"]
    assert found["network.backbone.patch_embed.proj.weight"] == pytest.approx(rates[0], rel=1e-5)
    assert found["network.backbone.cls_token"] == pytest.approx(rates[0], rel=1e-5)
    assert found["network.backbone.blocks.0.attn.qkv.weight"] == pytest.approx(rates[1], rel=1e-5)
    assert found[f"network.backbone.blocks.{depth - 1}.mlp.fc2.bias"] == pytest.approx(rates[2])
    assert found["network.head.weight"] == found["network.fc_norm.weight"] == 1.0
    assert not any(name.startswith("network.backbone.norm.") for name in found)  # left out
    trained = {name for name, each in objective.named_parameters() if each.requires_grad}
    assert set(found) == trained


@pytest.mark.parametrize("pooling", ["cls", "mean", "map"])
def test_every_trained_parameter_has_a_gradient(pooling: str) -> None:
    objective = build(pooling=pooling)
    torch.nn.init.normal_(objective.network.head.weight)
    objective(batch_of(4, objective.config), 0).loss.backward()
    missing = [
        name
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    # Patches alone are pooled, so nothing reads the class token after the last block.
    assert missing == []


def test_the_average_follows_and_is_what_is_evaluated() -> None:
    objective = build(ema_momentum=0.9)
    batch = batch_of(4, objective.config)
    before = objective.logits(batch.images)
    with torch.no_grad():
        objective.network.head.bias.add_(1.0)
    torch.testing.assert_close(objective.logits(batch.images), before)
    objective.after_step(0)  # the first momentum is 1/10
    torch.testing.assert_close(objective.logits(batch.images), before + 0.9)
    objective.after_step(100)  # and from here on 0.9
    torch.testing.assert_close(objective.logits(batch.images), before + 0.91)
    assert objective.exported()["classifier"] is objective.evaluated
    assert objective.evaluated is not objective.network


def test_labels_change_the_loss() -> None:
    losses = []
    for labels in ([0, 1, 2, 0], [1, 2, 0, 0]):
        objective = build()
        torch.nn.init.normal_(objective.network.head.weight)
        losses.append(float(objective(batch_of(4, objective.config, labels), 0).loss))
    assert losses[0] != losses[1]


def test_what_does_not_fit_the_classes_is_refused() -> None:
    config = ClassificationConfig()
    with pytest.raises(ValueError, match=r"one class \(a\)"):
        config.fit_to_classes(("a", "b"), (7, 0))
    config = ClassificationConfig(class_weights=(1.0, 2.0))
    with pytest.raises(
        ValueError, match="2 numbers for 3 classes; give one each, in this order: a"
    ):
        config.fit_to_classes(("a", "b", "c"), (1, 1, 1))


@pytest.mark.parametrize("word", ["rand-x9", "augmix", "rand-m9-", "3b"])
def test_an_augmentation_that_timm_does_not_have_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="augment"):
        ClassificationConfig(augment=word)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="class_weights are all 0"):
        ClassificationConfig(class_weights=(0.0, 0.0))
    with pytest.raises(ValueError, match="patience=3 has no effect without validation"):
        ClassificationConfig(held_out=0, patience=3)


@pytest.mark.parametrize("pooling", ["mean", "cls", "map"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_step_sees_the_patches_that_are_not_dropped_and_evaluation_all(
    pooling: str, stem: str
) -> None:
    backbone = BACKBONE.model_copy(update={"stem": stem})
    objective = build(backbone, pooling=pooling, patch_dropout=0.5, label_smoothing=0.0)
    plain = build(backbone, pooling=pooling, label_smoothing=0.0)
    batch = batch_of(6, objective.config)
    assert batch.hidden.sum(dim=1).tolist() == [12] * 6  # of 4 × 6
    assert not torch.equal(batch.hidden[0], batch.hidden[1])
    images = mix_images(objective.pixel_scale(batch.images), batch.shares, batch.boxes)
    logits = []
    for image, hidden in zip(images, batch.hidden, strict=True):  # one by one, the network by hand
        network = objective.backbone
        tokens = network.embed(image[None], hidden[None])[:, ~hidden]
        if pooling == "mean":
            last = network.encode_with_inner(tokens, (2,))[1][0]
            pooled = objective.network.fc_norm(last[:, 1:].mean(dim=1))
        else:
            features = network.encode(tokens)
            pooled = (
                features.cls if pooling == "cls" else objective.network.attn_pool(features.patches)
            )
        logits.append(objective.network.head(pooled)[0])
    expected = F.cross_entropy(torch.stack(logits), objective._targets(batch))
    assert objective(batch, 0).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain(batch, 0).loss.item() != pytest.approx(expected.item(), rel=1e-7)
    for each in (objective, plain):
        each.eval()
    torch.testing.assert_close(objective.logits(batch.images), plain.logits(batch.images))


def test_dropping_patches_changes_nothing_else_that_is_drawn() -> None:
    views = [build_views(ClassificationConfig(patch_dropout=each), BACKBONE) for each in (0.0, 0.7)]
    for seed in range(20):
        none, some = (each.draw(40, 50, np.random.default_rng(seed)) for each in views)
        assert not none.hidden.any()
        assert some.hidden.sum() == 17  # of 24: at least 30 % stay
        assert none[:-1] == some[:-1]


def test_relative_positions_cannot_do_without_patches() -> None:
    config = ClassificationConfig(patch_dropout=0.5)
    with pytest.raises(
        ValueError, match=r"objective.patch_dropout=0.5 leaves patches out, and .*relative"
    ):
        config.check(BACKBONE.model_copy(update={"position": "relative"}))
    ClassificationConfig().check(BACKBONE.model_copy(update={"position": "relative"}))
