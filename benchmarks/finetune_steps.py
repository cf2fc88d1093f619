"""Speed of a fine-tuning step against timm's own parts in a plain loop, and of validation against
the bare forward pass.

    python benchmarks/finetune_steps.py [--batch 8 --pairs 9] [--images 10000]

float32; ViT-S/16 at 224 pixels with 1,000 classes, drop path 0.1, mixup and CutMix, smoothed labels
and layer-wise decay on both sides; the sides take turns in one process. About four minutes on two
cores.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timing import Pairs, describe_machine, interleave, positive, repeated

from ssl_vit.distributed import Processes, cores_here, set_library_environment
from ssl_vit.run.machine import find_machine

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_vit.objectives.classification.objective import Classification

_CLASSES, _WARM_UP = 1_000, 2
_DROP_PATH, _DECAY, _RATE = 0.1, 0.65, 1e-4
_VALIDATION_PAIRS = 3


def main() -> None:
    """Print the machine and both comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=positive, default=8, help="images per step")
    parser.add_argument("--pairs", type=positive, default=9, help="turns of each side")
    parser.add_argument("--images", type=positive, default=10_000, help="validation images")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = find_machine(arguments.device, Processes()).device
    set_library_environment(device)

    import torch

    torch.set_num_threads(cores_here())
    print(describe_machine(device), flush=True)
    compare_steps(arguments.batch, arguments.pairs, torch.device(device))
    compare_validation(arguments.images, torch.device(device))


def build_classification(size: str, image_size: int) -> "Classification":
    """A new objective on a ViT."""
    import torch

    from ssl_vit.data.config import DataConfig
    from ssl_vit.models.build import build_backbone
    from ssl_vit.models.config import VIT_SIZES, VitConfig
    from ssl_vit.objectives.build import build_objective
    from ssl_vit.objectives.classification.objective import Classification
    from ssl_vit.objectives.config import ClassificationConfig

    torch.manual_seed(0)
    backbone = VitConfig(
        **VIT_SIZES[size],
        image_size=image_size,
        position="sincos",
        drop_path=_DROP_PATH,
        drop_path_rule="linear",
    )
    names = tuple(map(str, range(_CLASSES)))
    config = ClassificationConfig(
        classes=names, class_counts=(1,) * _CLASSES, layer_decay=_DECAY, augment=""
    )
    objective = build_objective(config, build_backbone(backbone), DataConfig(), 10)
    assert isinstance(objective, Classification)
    return objective


def our_step(batch: int, device: Any) -> tuple[Callable[[], "Tensor"], int]:
    """Our objective in a plain torch loop, and its number of trained parameters."""
    import numpy as np
    import torch

    from ssl_vit.data.views import Sample
    from ssl_vit.objectives.build import build_views
    from ssl_vit.training.config import OptimizerConfig
    from ssl_vit.training.engine import to_device
    from ssl_vit.training.optimizer import build_optimizer

    objective = build_classification("small", 224).to(device).train()
    views = build_views(objective.config, objective.backbone.config)
    rng = np.random.Generator(np.random.Philox(0))
    draws = [views.draw(224, 224, rng) for _ in range(batch)]
    pixels = rng.integers(0, 256, (1, batch, 3, 224, 224), dtype=np.uint8)
    samples = [Sample(number, number % _CLASSES) for number in range(batch)]
    drawn = to_device(views.collate([torch.from_numpy(pixels)], draws, samples), device)
    settings = OptimizerConfig(base_learning_rate=_RATE, betas=(0.9, 0.999))
    groups = objective.parameter_groups()
    optimizer = build_optimizer(groups, settings, fused=True)
    for target, group in zip(optimizer.param_groups, groups, strict=True):
        target["lr"] = _RATE * group.learning_rate_scale

    def step() -> "Tensor":
        loss = objective(drawn, 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, sum(each.numel() for each in objective.parameters() if each.requires_grad)


def timm_step(batch: int, device: Any) -> tuple[Callable[[], "Tensor"], int]:
    """timm's network, Mixup (one mixture per batch, by default), loss, and AdamW by layer."""
    import timm
    import torch
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch16_224",
        num_classes=_CLASSES,
        global_pool="avg",
        drop_path_rate=_DROP_PATH,
    )
    model.to(device).train()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=_RATE, weight_decay=0.05, layer_decay=_DECAY
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=_CLASSES)
    criterion = SoftTargetCrossEntropy()
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % _CLASSES
    mean, std = (
        255 * torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def step() -> "Tensor":
        mixed, targets = mixup(images.float().sub_(mean).div_(std), labels)
        loss = criterion(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, sum(each.numel() for each in model.parameters() if each.requires_grad)


def compare_steps(batch: int, pairs: int, device: Any) -> None:
    """Seconds per step of both sides, and their ratio."""
    (ours, our_count), (theirs, their_count) = our_step(batch, device), timm_step(batch, device)
    print(f"steps     batch {batch}; {our_count:,} trained parameters ours, {their_count:,} timm's")
    synchronize = _synchronize(device)
    for step in (ours, theirs) * _WARM_UP:
        step()
    found = interleave(repeated(ours, 1, synchronize), repeated(theirs, 1, synchronize), pairs)
    first, second = (1000 * seconds for seconds in found.walls)
    print(
        f"          ours {first:,.0f} ms, timm's {second:,.0f} ms: {found.describe()}", flush=True
    )


def compare_validation(count: int, device: Any) -> None:
    """Images per second of validation, and its time over that of the bare forward pass."""
    import numpy as np
    import torch

    from ssl_vit.monitors.validation import BATCH, Validation
    from ssl_vit.objectives.method import Validating

    objective = build_classification("tiny", 64).to(device).eval()
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    labels = np.arange(count) % _CLASSES
    settings = Validating("", 0.1, 1, 0)
    validation = Validation(images, torch.arange(count), labels, _CLASSES, settings)

    def validate() -> object:
        return validation.measure([validation.predict(objective, device)])

    @torch.no_grad()
    def forward() -> object:
        return [
            objective.network(objective.pixel_scale(some.to(device)))[0]
            for some in images.split(BATCH)
        ]

    synchronize = _synchronize(device)
    sides = (repeated(each, 1, synchronize) for each in (validate, forward))
    found: Pairs = interleave(*sides, _VALIDATION_PAIRS)
    rate = count / statistics.median(spent.wall for spent in found.first)
    print(
        f"validation of {count:,} images in batches of {BATCH}, ViT-Ti/16 at 64 pixels: "
        f"{rate:,.0f} images/s; the bare forward pass takes {found.describe()} of its time",
        flush=True,
    )


def _synchronize(device: Any) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


if __name__ == "__main__":
    main()
