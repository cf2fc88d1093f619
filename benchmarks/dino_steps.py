"""The two DINOv2 training steps that `train_step.py` compares: ours, and one built from lightly.

Both start from the same weights and use the same pixels, masks, precision and fused AdamW, without
stochastic depth. Import only after `ssl_vit.distributed.set_library_environment`.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mae_steps import Precision, TrainingStep, autocast, build, num_trained
from piece_clock import PieceClock
from torch import Tensor, nn

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Sample
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.color_jitter import apply_color_jitter
from ssl_vit.objectives.config import DinoConfig
from ssl_vit.objectives.dino import objective as dino
from ssl_vit.objectives.dino.config import NUM_GLOBALS
from ssl_vit.objectives.dino.objective import Dino
from ssl_vit.objectives.dino.views import DinoBatch, DinoViews
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.run.config import RunConfig
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.engine import to_device
from ssl_vit.training.optimizer import build_optimizer

_PICTURE = 256  # pixels per side of the images that views are drawn from
_LOCAL_PATCHES = 6  # per side of a local view


class DinoSizes(NamedTuple):
    """Sizes of both sides of a comparison."""

    width: int
    depth: int
    image_size: int
    patch_size: int
    local_crops: int
    prototypes: int
    batch: int
    """Images per step."""

    def __str__(self) -> str:
        return (
            f"ViT of {self.depth} × {self.width}, 2 views of {self.image_size} and "
            f"{self.local_crops} of {_LOCAL_PATCHES * self.patch_size} pixels in patches of "
            f"{self.patch_size}, a head of 2048, 2048, 256 and {self.prototypes:,} prototypes for "
            f"both losses, batch {self.batch}"
        )


def dino_config(
    sizes: DinoSizes,
    precision: Precision,
    device: Literal["cpu", "cuda"],
    centering: Literal["average", "sinkhorn"] = "average",
) -> RunConfig:
    """DINOv2's short run (`dinov2_vitl16`) in these sizes, without stochastic depth."""
    return RunConfig(
        recipe="benchmark",
        backbone=VitConfig(
            width=sizes.width,
            depth=sizes.depth,
            heads=max(1, sizes.width // 64),
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
            layer_scale=1e-5,
            initialization="truncated_normal",
        ),
        objective=DinoConfig(
            centering=centering,
            prototypes=sizes.prototypes,
            local_crops=sizes.local_crops,
            local_size=_LOCAL_PATCHES * sizes.patch_size,
        ),
        data=DataConfig(global_batch_size=sizes.batch, lanes=sizes.batch),
        optimizer=OptimizerConfig(base_learning_rate=1e-4, learning_rate_rule="absolute"),
        engine=EngineConfig(precision=precision, device=device, micro_batch_size=sizes.batch),
    )


def draw_dino_batch(config: RunConfig) -> DinoBatch:
    """Noise images with the views, color jitter and masks of a run, on the CPU."""
    views, batch = DinoViews(_objective(config), config.backbone), config.data.global_batch_size
    rng = np.random.Generator(np.random.Philox(0))
    draws = [views.draw(_PICTURE, _PICTURE, rng) for _ in range(batch)]
    crops = [
        torch.from_numpy(rng.integers(0, 256, (count, batch, 3, *size), dtype=np.uint8))
        for count, size in views.crop_sizes
    ]
    return views.collate(crops, draws, [Sample(number, -1) for number in range(batch)])


def our_dino_step(
    config: RunConfig,
    batch: DinoBatch,
    clock: PieceClock | None = None,
    compiles: bool = False,
) -> TrainingStep:
    """Our objective in a plain torch loop, including color jitter, blur and pixel normalization.

    Args:
        config: The run to compute.
        batch: Moved to the device in every step.
        clock: Times the pieces, which adds some overhead.
        compiles: Whether the forward pass is compiled, as one graph.
    """
    device = torch.device(config.engine.device)
    objective = _build_dino(config).to(device)
    model: Any = torch.compile(objective) if compiles else objective
    optimizer = build_optimizer(objective.parameter_groups(), config.optimizer, fused=True)
    if clock is not None:
        teacher = objective.teacher.module
        clock.watch(objective, "_prepare", "pixels")
        clock.watch(objective.student.head, "forward", "heads")
        clock.watch(teacher.head, "forward", "heads")
        clock.watch(objective, "_sharpen", "targets")
        clock.watch(dino, "view_loss", "view loss")
        clock.watch(dino, "patch_loss", "patch loss")
        clock.watch(dino, "koleo", "KoLeo")
        clock.watch(optimizer, "step", "AdamW")
        clock.watch(objective, "after_step", "teacher's update")

    def step() -> Tensor:
        with autocast(config):
            loss = model(to_device(batch, device), 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0)
        return loss.detach()

    return TrainingStep(step, num_trained(objective))


class LightlyNetwork(nn.Module):
    """lightly's backbone and head, combined as in its DINOv2 benchmark (version 1.6,
    benchmarks/imagenet/vitb16/dinov2.py), in our sizes and with our weights.

    Args:
        config: The run, for its sizes.
        start: Provides the initial weights, those of its student.
    """

    def __init__(self, config: RunConfig, start: Dino) -> None:
        from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        backbone, objective = config.backbone, start.config
        vit = VisionTransformer(
            img_size=backbone.image_size,
            patch_size=backbone.patch_size,
            embed_dim=backbone.width,
            depth=backbone.depth,
            num_heads=backbone.heads,
            num_classes=0,
            dynamic_img_size=True,
            init_values=backbone.layer_scale,
        )
        # Positions are resized as ours are; lightly's benchmark does so without antialiasing.
        self.backbone = MaskedVisionTransformerTIMM(vit, pos_embed_initialization="skip")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its weight_norm is deprecated
            self.head = DINOProjectionHead(
                backbone.width, objective.head_hidden, objective.bottleneck, objective.prototypes
            )
        state = self.state_dict() | {"backbone.mask_token": start.mask_token.view(1, 1, -1)}
        for name, value in start.student.state_dict().items():
            name = name.replace("backbone.", "backbone.vit.", 1)
            state[name.replace("prototypes.weight", "last_layer.weight_v")] = value
        self.load_state_dict(state)

    def forward(
        self, images: Tensor, hidden: Tensor | None = None, selected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(views, D) class tokens, and (R, D) features of the selected patches.

        Args:
            images: (views, 3, H, W) normalized.
            hidden, selected: (views, 1 + N) bool; None: none.
        """
        features = self.backbone.encode(images, mask=hidden)
        return features[:, 0], features[:0, 0] if selected is None else features[selected]


class LightlyLosses:
    """The three losses of lightly's DINOv2 benchmark, with its weights."""

    def __init__(self, objective: DinoConfig, temperature: float, device: torch.device) -> None:
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss

        self.num_views = NUM_GLOBALS + objective.local_crops
        self.temperature, self.koleo_weight = temperature, objective.koleo_weight
        sizes = {"output_dim": objective.prototypes, "student_temp": objective.student_temperature}
        self._dino = DINOLoss(**sizes).to(device)
        self._ibot = IBOTPatchLoss(**sizes).to(device)
        self._koleo = KoLeoLoss()

    def view_loss(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Loss of the class tokens' logits; also updates its center, as does ``patch_loss``."""
        views = student.chunk(self.num_views)
        return self._dino(teacher.chunk(NUM_GLOBALS), views, teacher_temp=self.temperature)

    def patch_loss(self, teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
        """Loss of the masked patches' logits."""
        return self._ibot(teacher, student, mask, teacher_temp=self.temperature)

    def koleo(self, tokens: Tensor) -> Tensor:
        """Weighted KoLeo loss of the global views' class tokens."""
        return self.koleo_weight * sum(map(self._koleo, tokens.chunk(NUM_GLOBALS)))


def lightly_dino_step(
    config: RunConfig, batch: DinoBatch, clock: PieceClock | None = None
) -> TrainingStep:
    """The step of lightly's DINOv2 benchmark in the same loop, on pixels prepared beforehand (in
    lightly, by the data workers). Arguments as for ours.
    """
    from lightly.models import utils

    device, start = torch.device(config.engine.device), _build_dino(config)
    student, teacher = (LightlyNetwork(config, start).to(device) for _ in range(2))
    teacher.requires_grad_(False).eval()
    losses = LightlyLosses(start.config, start.teacher_temperature(0), device)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.optimizer.base_learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    if clock is not None:
        clock.watch(student.head, "forward", "heads")
        clock.watch(teacher.head, "forward", "heads")
        clock.watch(losses, "view_loss", "view loss")
        clock.watch(losses, "patch_loss", "patch loss")
        clock.watch(losses, "koleo", "KoLeo")
        clock.watch(optimizer, "step", "AdamW")
        clock.watch(utils, "update_momentum", "teacher's update")
    batch = to_device(batch, device)
    views, local = _normalized(config, batch)
    grid = batch.hidden.unflatten(1, config.backbone.grid)
    masked = nn.functional.pad(batch.hidden, (1, 0))  # never the class token

    def step() -> Tensor:
        with autocast(config):
            with torch.no_grad():
                cls, patches = teacher(views, selected=masked)
                targets, patch_targets = teacher.head(cls), teacher.head(patches)
            cls, patches = student(views, masked, masked)
            logits, patch_logits = student.head(cls), student.head(patches)
            logits = torch.cat([logits, student.head(student(local)[0])])
            loss = losses.view_loss(targets, logits) + losses.koleo(cls)
            loss = loss + losses.patch_loss(patch_targets, patch_logits, grid)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        utils.update_momentum(student, teacher, start.config.momentum)
        return loss.detach()

    return TrainingStep(step, num_trained(student))


def measure_pieces(
    make: Callable[[PieceClock], TrainingStep],
    now: Callable[[], float],
    warm_up: int,
    steps: int = 3,
) -> tuple[float, dict[str, float]]:
    """Seconds per step, and per piece of it; the rest of the step is the backbones.

    Args:
        make: Builds a step whose pieces the clock times.
        now: Current time in seconds, after all queued work is done.
        warm_up: Number of steps before the measurement.
        steps: Number of measured steps.
    """
    with PieceClock(now) as clock:
        step = make(clock).step
        for _ in range(warm_up):
            step()
        clock.seconds.clear()
        began = now()
        for _ in range(steps):
            step()
        return (now() - began) / steps, {k: v / steps for k, v in clock.seconds.items()}


def _normalized(config: RunConfig, batch: DinoBatch) -> tuple[Tensor, Tensor]:
    """Global and local views, prepared as in our objective."""
    pixel_scale = PixelScale(config.data.pixel_mean, config.data.pixel_std).to(batch.images.device)
    rows = batch.color_jitter.split([len(batch.images), len(batch.local)])
    return (
        pixel_scale(apply_color_jitter(batch.images, rows[0]) * 255),
        pixel_scale(apply_color_jitter(batch.local, rows[1]) * 255),
    )


def _build_dino(config: RunConfig) -> Dino:
    objective = build(config)
    assert isinstance(objective, Dino)
    return objective


def _objective(config: RunConfig) -> DinoConfig:
    assert isinstance(config.objective, DinoConfig)
    return config.objective
