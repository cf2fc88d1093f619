"""Recipes of self-distillation: DINO (Caron et al. 2021, arXiv 2104.14294), iBOT (Zhou et al. 2021,
arXiv 2111.07832) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193).
"""

from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.objectives.config import DinoConfig
from ssl_vit.recipes.recipe import Recipe, recipe
from ssl_vit.run.config import RunConfig
from ssl_vit.training.config import (
    CheckpointConfig,
    EngineConfig,
    ExportConfig,
    OptimizerConfig,
    ScheduleConfig,
)

_LARGE_HEADS = DinoConfig(
    temperature_warmup=30 / 500,
    momentum=0.994,
    prototypes=131_072,
    bottleneck=384,
    ibot_prototypes=131_072,
    freeze_prototypes=1 / 500,
    layer_decay=1.0,
    local_size=98,
)


@recipe(
    method="DINOv2",
    network="ViT of 6 × 192 for a few thousand images",
    source="our own runs",
    details='docs/benchmarks.md, "Quality" and "A small DINOv2"',
    expected=(
        "1,960 solar cells (ELPV) after 148 epochs (40 minutes on two cores): k-NN about 80 %; "
        "untrained 71 %, raw pixels 73 %, ImageNet features 81 %"
    ),
    notes=(
        "Crops of 96 pixels and patches of 16 pixels (36 tokens), so that a CPU can make enough "
        "steps. Xavier initialization, because with a standard deviation of 0.02 the class tokens "
        "of a narrow network carry no information about the image at first. A teacher temperature "
        "of a fifth of the student's, because with small batches the paper's temperatures make the "
        "teacher's output flatter with every step, and the run learns nothing. For images without "
        "a fixed orientation, objective.vertical_flip=0.5 helps."
    ),
)
def dinov2_small_data() -> RunConfig:
    return RunConfig(
        recipe="dinov2_small_data",
        backbone=VitConfig(width=192, depth=6, heads=3, patch_size=16, image_size=96),
        objective=DinoConfig(
            koleo_weight=0.05,
            teacher_temperature=0.02,
            warmup_teacher_temperature=0.02,
            momentum=0.99,
            prototypes=1024,
            bottleneck=128,
            head_hidden=512,
            layer_decay=1.0,
            patch_embed_lr_scale=1.0,
            local_crops=4,
            local_size=48,
            min_local_area=0.1,
            min_global_area=0.4,
        ),
        data=DataConfig(global_batch_size=64, lanes=32),
        schedule=ScheduleConfig(length=100.0, warmup=5.0),
        optimizer=OptimizerConfig(
            learning_rate_rule="absolute",
            base_learning_rate=1.5e-3,
            final_learning_rate=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.2,
            betas=(0.9, 0.999),
            clip_norm=3.0,
        ),
        engine=EngineConfig(micro_batch_size=64),
        checkpoint=CheckpointConfig(every_steps=100),
        export=ExportConfig(every_steps=500),
    )


@recipe(
    method="DINO",
    network="ViT-S/16",
    source="Caron et al. 2021, arXiv 2104.14294",
    details=(
        'section 3.2 "Implementation details" and appendix C (AdamW 5e-4 × batch/256, decay 0.04 '
        "→ 0.4, batch 1024, momentum 0.996 → 1, 2 × 224 and 10 × 96 pixels with a scale of 0.25; "
        "800 epochs in table 2). Unlike in the released code, gradients are clipped by global "
        "norm (there: per parameter), and the drop path rate is the same in every block (there: "
        "it increases from 0)"
    ),
    expected=(
        "ImageNet-1k: k-NN 74.5, linear 77.0 after 800 epochs; 69.3 and 74.0 after 100 (the "
        "authors' release)"
    ),
)
def dino_vits16() -> RunConfig:
    return _dino("dino_vits16", ibot_weight=0.0)


@recipe(
    method="iBOT",
    network="ViT-S/16",
    source="Zhou et al. 2021, arXiv 2111.07832",
    details=(
        "section 4.1 and appendix C: the settings of DINO, with a shared head of 8192 prototypes "
        "and half of the global views masked by 10 to 50 %, block-wise. Clipping and drop path "
        "differ from the released code as in dino_vits16"
    ),
    expected="ImageNet-1k after 800 epochs: k-NN 75.2, linear 77.9 (the authors' release)",
)
def ibot_vits16() -> RunConfig:
    return _dino("ibot_vits16", prototypes=8192)


@recipe(
    method="DINOv2",
    network="ViT-L/16, the short run",
    source="Oquab et al. 2023, arXiv 2304.07193",
    details=(
        'table 16 and the released configuration for ImageNet-1k: 100 "epochs" of 1,250 steps '
        "of 2,048 images, shared heads, centering by a moving average. Unlike there, gradients are "
        "clipped by global norm (there: backbone and heads separately)"
    ),
    expected="ImageNet-1k: k-NN 81.6, linear 82.9 (the authors' release)",
)
def dinov2_vitl16() -> RunConfig:
    return _dinov2("dinov2_vitl16", DinoConfig(centering="average"), batch=2048, steps=125_000)


@recipe(
    method="DINOv2",
    network="ViT-L/14",
    source="Oquab et al. 2023, arXiv 2304.07193",
    details=(
        'table 16 and the released configuration for ImageNet-22k: 500 "epochs" of 1,250 steps '
        "of 3,072 images, a head for each loss, Sinkhorn-Knopp; clipping as in dinov2_vitl16"
    ),
    expected=(
        "trained on ImageNet-22k: k-NN 82.0, linear 84.5 on ImageNet-1k (the authors' release)"
    ),
)
def dinov2_vitl14_in22k() -> RunConfig:
    return _dinov2("dinov2_vitl14_in22k", _LARGE_HEADS, batch=3072, steps=625_000, patch_size=14)


@recipe(
    method="DINOv2",
    network="ViT-g/14",
    source="Oquab et al. 2023, arXiv 2304.07193",
    details=(
        "tables 16 and 17, and the released configuration for ImageNet-22k. The published model "
        "of this size was trained on LVD-142M, which is not public. Clipping as in dinov2_vitl16"
    ),
    expected="no published figure on ImageNet-22k",
)
def dinov2_vitg14() -> RunConfig:
    return _dinov2(
        *("dinov2_vitg14", _LARGE_HEADS), batch=3072, steps=625_000, patch_size=14, size="giant"
    )


SELF_DISTILLATION: tuple[Recipe, ...] = (
    *(dinov2_small_data, dino_vits16, ibot_vits16),
    *(dinov2_vitl16, dinov2_vitl14_in22k, dinov2_vitg14),
)


def _dino(recipe: str, ibot_weight: float = 1.0, prototypes: int = 65_536) -> RunConfig:
    """A ViT-S/16 with the common settings of DINO and iBOT."""
    epochs = 800
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(**VIT_SIZES["small"], drop_path=0.1, initialization="truncated_normal"),
        objective=DinoConfig(
            ibot_weight=ibot_weight,
            koleo_weight=0.0,
            centering="average",
            temperature_warmup=30 / epochs,
            momentum=0.996,
            prototypes=prototypes,
            freeze_prototypes=1 / epochs,
            layer_decay=1.0,
            patch_embed_lr_scale=1.0,
            local_crops=10,
            min_global_area=0.25,
        ),
        data=DataConfig(global_batch_size=1024),
        schedule=ScheduleConfig(length=float(epochs), warmup=10.0),
        optimizer=OptimizerConfig(
            base_learning_rate=5e-4,
            final_learning_rate=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.4,
            betas=(0.9, 0.999),
            clip_norm=3.0,
        ),
    )


def _dinov2(
    recipe: str,
    objective: DinoConfig,
    batch: int,
    steps: int,
    patch_size: int = 16,
    size: str = "large",
) -> RunConfig:
    """Oquab et al. 2023. Their "epochs" are 1,250 steps regardless of the size of the data set, so
    the length is in steps.
    """
    is_short = steps == 125_000
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(
            **VIT_SIZES[size],
            patch_size=patch_size,
            layer_scale=1e-5,
            drop_path=0.3 if is_short else 0.4,
            feed_forward="mlp" if is_short else "swiglu",
            initialization="truncated_normal",
        ),
        objective=objective,
        data=DataConfig(global_batch_size=batch),
        schedule=ScheduleConfig(
            unit="steps", length=float(steps), warmup=1250.0 * (10 if is_short else 80)
        ),
        optimizer=OptimizerConfig(
            learning_rate_rule="sqrt_1024",
            base_learning_rate=4e-3 if is_short else 2e-4,
            final_learning_rate=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.4 if is_short else 0.2,
            betas=(0.9, 0.999),
            clip_norm=3.0,
        ),
        engine=EngineConfig(zero_stage=2, activation_checkpointing=size == "giant"),
    )
