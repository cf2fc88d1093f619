"""The MAE training steps that `train_step.py` compares, each a function without arguments.

All use the same images, sizes, precision and fused AdamW. Import only after
`ssl_vit.distributed.set_library_environment`.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_vit.data.batches import Loaded
from ssl_vit.data.config import DataConfig
from ssl_vit.distributed import Processes
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.masking import random_hidden
from ssl_vit.objectives.objective import Objective
from ssl_vit.objectives.one_crop.config import num_hidden_patches
from ssl_vit.objectives.one_crop.views import MaskedBatch
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.run.config import RunConfig
from ssl_vit.run.counted import counted
from ssl_vit.training.config import EngineConfig, LogConfig, OptimizerConfig, ScheduleConfig
from ssl_vit.training.engine import Engine, to_device
from ssl_vit.training.optimizer import build_optimizer
from ssl_vit.training.plan import DataFacts, Machine, make_plan

Precision = Literal["float32", "bfloat16"]

_NORMS_EVERY = LogConfig().norm_every_steps
_STEPS = 10_000  # length of the schedule; far more than a benchmark takes


class Sizes(NamedTuple):
    """Sizes of both sides of a comparison."""

    width: int
    depth: int
    image_size: int
    patch_size: int
    decoder_width: int
    decoder_depth: int
    batch: int
    """Images per step."""

    def __str__(self) -> str:
        return (
            f"ViT of {self.depth} × {self.width}, {self.image_size} pixels in patches of "
            f"{self.patch_size}, decoder {self.decoder_depth} × {self.decoder_width}, "
            f"batch {self.batch}"
        )


class TrainingStep(NamedTuple):
    """A model with its optimizer, ready to take steps."""

    step: Callable[[], Tensor | float]
    """Forward pass, backward pass and optimizer step; returns the loss before the step."""
    num_parameters: int
    """Number of trained parameters."""


def run_config(sizes: Sizes, precision: Precision, device: Literal["cpu", "cuda"]) -> RunConfig:
    """A run of these sizes: heads are 64 features wide, 32 in the decoder (He et al. 2021)."""
    return RunConfig(
        recipe="benchmark",
        backbone=VitConfig(
            width=sizes.width,
            depth=sizes.depth,
            heads=max(1, sizes.width // 64),
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
            position="sincos",
        ),
        objective=MaeConfig(
            decoder_width=sizes.decoder_width,
            decoder_depth=sizes.decoder_depth,
            decoder_heads=max(1, sizes.decoder_width // 32),
        ),
        data=DataConfig(global_batch_size=sizes.batch, lanes=sizes.batch),
        schedule=ScheduleConfig(unit="steps", length=_STEPS, warmup=0),
        optimizer=OptimizerConfig(base_learning_rate=1e-4, learning_rate_rule="absolute"),
        engine=EngineConfig(precision=precision, device=device, micro_batch_size=sizes.batch),
    )


def draw_batch(config: RunConfig) -> MaskedBatch:
    """Noise images with masks, on the CPU."""
    backbone, batch = config.backbone, config.data.global_batch_size
    rng = np.random.default_rng(0)
    side = backbone.image_size
    images = rng.integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    num_hidden = num_hidden_patches(backbone.num_patches, config.objective.mask_ratio)
    hidden = [random_hidden(backbone.num_patches, num_hidden, rng) for _ in range(batch)]
    return MaskedBatch(
        torch.from_numpy(images), torch.from_numpy(np.stack(hidden)), torch.arange(batch)
    )


def our_step(
    config: RunConfig,
    batch: MaskedBatch,
    processes: Processes | None = None,
    compiles: bool = False,
) -> TrainingStep:
    """Our objective in a plain torch loop; the batch is moved to the device in every step.

    Args:
        config: The run to compute.
        batch: This process's batch.
        processes: If given, use torch's DistributedDataParallel.
        compiles: Whether the forward pass is compiled, as one graph.
    """
    device = torch.device(config.engine.device)
    objective = build(config).to(device)
    model: Any = objective if processes is None else DistributedDataParallel(objective)
    if compiles:
        model = torch.compile(model, dynamic=False)
    optimizer = build_optimizer(objective.parameter_groups(), config.optimizer, fused=True)

    def step() -> Tensor:
        with autocast(config):
            loss = model(to_device(batch, device), 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return TrainingStep(step, num_trained(objective))


def transformers_step(config: RunConfig, batch: MaskedBatch, mode: str = "") -> TrainingStep:
    """Hugging Face's ViTMAEForPreTraining in the same loop, on images normalized beforehand.

    It draws its own masks, and uses scaled-dot-product attention, its default.

    Args:
        config: The run to compute.
        batch: The images.
        mode: Of torch.compile; empty: not compiled.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    backbone, objective = config.backbone, config.objective
    device = torch.device(config.engine.device)
    torch.manual_seed(config.seed)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=backbone.width,
            num_hidden_layers=backbone.depth,
            num_attention_heads=backbone.heads,
            intermediate_size=int(backbone.width * backbone.mlp_ratio),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            image_size=backbone.image_size,
            patch_size=backbone.patch_size,
            decoder_num_attention_heads=objective.decoder_heads,
            decoder_hidden_size=objective.decoder_width,
            decoder_num_hidden_layers=objective.decoder_depth,
            decoder_intermediate_size=4 * objective.decoder_width,
            mask_ratio=objective.mask_ratio,
            norm_pix_loss=objective.normalize_targets,
        )
    )
    nn.Module.to(model, device)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.optimizer.base_learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    pixel_scale = PixelScale(config.data.pixel_mean, config.data.pixel_std).to(device)
    images = pixel_scale(batch.images.to(device))
    network: Any = torch.compile(model, mode=mode) if mode else model

    def step() -> Tensor:
        with autocast(config):
            loss = network(pixel_values=images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return TrainingStep(step, num_trained(model))


def engine_step(
    config: RunConfig, batch: MaskedBatch, engine: EngineConfig, processes: Processes
) -> TrainingStep:
    """Our objective in our engine. The process group must have been started.

    Args:
        config: The run to compute.
        batch: This process's batch.
        engine: Settings of the engine.
        processes: This process's rank and world size.
    """
    machine = Machine(processes.world_size, torch.get_num_threads(), _device(config))
    facts = DataFacts(1000 * config.data.global_batch_size, "benchmark")
    objective = build(config)
    running = Engine(
        objective,
        config.optimizer,
        engine,
        counted(make_plan(config, machine, facts), config, machine),
        processes,
        config.seed,
    )
    batches, steps = itertools.repeat(Loaded(batch)), itertools.count()

    def step() -> float:
        number = next(steps)
        # Norms as often as a run measures them.
        return running.train_step(batches, number, (number + 1) % _NORMS_EVERY == 0).loss

    return TrainingStep(step, num_trained(objective))


def build(config: RunConfig) -> Objective:
    torch.manual_seed(config.seed)
    return build_objective(
        config.objective, VisionTransformer(config.backbone), config.data, total_steps=1
    ).train()


def _device(config: RunConfig) -> Literal["cpu", "cuda"]:
    assert config.engine.device != "auto"
    return config.engine.device


def autocast(config: RunConfig) -> torch.autocast:
    half = config.engine.precision == "bfloat16"
    return torch.autocast(_device(config), dtype=torch.bfloat16, enabled=half)


def num_trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
