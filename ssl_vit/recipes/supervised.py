"""Recipes with labels: fine-tuning a pre-trained backbone, and training one from scratch."""

from typing import Any

from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.objectives.config import ClassificationConfig
from ssl_vit.recipes.masked import mae_small_data
from ssl_vit.recipes.recipe import Recipe, recipe
from ssl_vit.run.config import RunConfig
from ssl_vit.training.config import OptimizerConfig, ScheduleConfig

_MAE_DETAILS = (
    "table 9 and the released configuration, but positions stay fixed (the authors': learned), and "
    "each image gets its own mixture"
)
_DEIT_DETAILS = (
    "DeiT, table 9, without distillation; not their repeated augmentation (three crops of an image "
    "in a batch)"
)
_BASELINE = (
    "From random weights, as a baseline for pre-training. DeiT III (arXiv 2204.07118) reaches 81.4 "
    "and 83.8 with LAMB, which needs whole-layer norms that ZeRO shards do not have."
)
_NEEDS = "Needs a pre-trained backbone: resume_from=EXPORT, an exports/step_… of a run."


@recipe(
    method="Fine-tuning of MAE",
    network="ViT-B/16",
    source="He et al. 2021, arXiv 2111.06377",
    details=_MAE_DETAILS,
    expected="ImageNet-1k: 83.7 (the authors' release)",
    notes=_NEEDS,
)
def finetune_mae_vitb16() -> RunConfig:
    return _mae("finetune_mae_vitb16", "base", 5e-4, decay=0.65, drop_path=0.1, epochs=100.0)


@recipe(
    method="Fine-tuning of MAE",
    network="ViT-L/16",
    source="He et al. 2021, arXiv 2111.06377",
    details=_MAE_DETAILS,
    expected="ImageNet-1k: 86.0 (the authors' release)",
    notes=_NEEDS,
)
def finetune_mae_vitl16() -> RunConfig:
    return _mae("finetune_mae_vitl16", "large", 1e-3, decay=0.75, drop_path=0.2, epochs=50.0)


@recipe(
    method="Fine-tuning of MAE",
    network="ViT-H/14",
    source="He et al. 2021, arXiv 2111.06377",
    details=_MAE_DETAILS,
    expected="ImageNet-1k: 86.9, at 448 pixels 87.8 (the authors' release)",
    notes=_NEEDS,
)
def finetune_mae_vith14() -> RunConfig:
    return _mae("finetune_mae_vith14", "huge", 1e-3, decay=0.75, drop_path=0.3, epochs=50.0)


@recipe(
    method="Fine-tuning of BEiT",
    network="ViT-B/16",
    source="Bao et al. 2021, arXiv 2106.08254",
    details=(
        "the released configuration for a network pre-trained on ImageNet-22k (100 epochs, batch "
        "1024, 4e-3, layer decay 0.65); a table of positions for every block"
    ),
    expected="ImageNet-1k: 83.7 after pre-training on ImageNet-22k (the authors' release)",
    notes=_NEEDS,
)
def finetune_beit_vitb16() -> RunConfig:
    return _beit("finetune_beit_vitb16", 4e-3)


@recipe(
    method="Fine-tuning of BEiT v2",
    network="ViT-B/16",
    source="Peng et al. 2022, arXiv 2208.06366",
    details=(
        "the released configuration after 300 epochs of pre-training (100 epochs, batch 1024, "
        "5e-4, layer decay 0.65); after 1600: objective.layer_decay=0.6 backbone.drop_path=0.2"
    ),
    expected="ImageNet-1k: 85.0 after 300 epochs of pre-training (the paper)",
    notes=_NEEDS,
)
def finetune_beit2_vitb16() -> RunConfig:
    return _beit("finetune_beit2_vitb16", 5e-4)


@recipe(
    method="Fine-tuning of DINOv2",
    network="ViT-L/14",
    source="Oquab et al. 2023, arXiv 2304.07193",
    details=(
        "they fine-tuned with the settings of DeiT III (Touvron et al. 2022, arXiv 2204.07118), "
        "whose released ones for ViT-L at 224 pixels these are: 20 epochs, batch 512, 1e-5"
    ),
    expected=(
        "no published figure for ViT-L/14; ViT-g/14 of LVD-142M, ImageNet-1k: 88.5, at 448 pixels "
        "88.9 (the paper)"
    ),
    notes=_NEEDS,
)
def finetune_dinov2_vitl14() -> RunConfig:
    return RunConfig(
        recipe="finetune_dinov2_vitl14",
        backbone=VitConfig(
            **VIT_SIZES["large"],
            patch_size=14,
            layer_scale=1e-5,
            drop_path=0.45,
            feed_forward="swiglu",
            initialization="truncated_normal",
        ),
        objective=ClassificationConfig(pooling="cls", layer_decay=1.0, random_erasing=0.0),
        data=DataConfig(global_batch_size=512),
        schedule=ScheduleConfig(length=20.0, warmup=5.0),
        optimizer=OptimizerConfig(
            learning_rate_rule="absolute",
            base_learning_rate=1e-5,
            final_learning_rate=1e-5,
            weight_decay=0.1,
            final_weight_decay=0.1,
            betas=(0.9, 0.999),
        ),
    )


@recipe(
    method="Supervised training",
    network="ViT-S/16",
    source="Touvron et al. 2020, arXiv 2012.12877",
    details=_DEIT_DETAILS,
    expected="ImageNet-1k: 79.9 (the authors' release)",
    notes=_BASELINE,
)
def supervised_vits16() -> RunConfig:
    return _deit("supervised_vits16", "small")


@recipe(
    method="Supervised training",
    network="ViT-B/16",
    source="Touvron et al. 2020, arXiv 2012.12877",
    details=_DEIT_DETAILS,
    expected="ImageNet-1k: 81.8 (the authors' release)",
    notes=_BASELINE,
)
def supervised_vitb16() -> RunConfig:
    return _deit("supervised_vitb16", "base")


@recipe(
    method="Fine-tuning",
    network="ViT of 6 × 192 for a few thousand images",
    source="He et al. 2021, arXiv 2111.06377",
    details=(
        "for the objective; the values are our own: the network of mae_small_data, mild "
        "augmentation, no mixed images, half of the patches in a step (Liu et al. 2022, arXiv "
        "2208.07220)"
    ),
    expected="not measured yet",
    notes=(
        f"{_NEEDS} A higher resolution helps: backbone.image_size=192. For images without a fixed "
        "orientation, objective.vertical_flip=0.5 helps."
    ),
)
def finetune_small_data() -> RunConfig:
    whole = mae_small_data()
    changes: dict[str, Any] = {
        "recipe": "finetune_small_data",
        "backbone": whole.backbone.model_copy(update={"drop_path": 0.1}),
        "objective": ClassificationConfig(
            layer_decay=0.75,
            ema_momentum=0.98,
            patch_dropout=0.5,
            min_crop_area=0.5,
            augment="",
            random_erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
        ),
        "data": DataConfig(global_batch_size=32, lanes=32),
        "schedule": ScheduleConfig(length=50.0, warmup=5.0),
        "optimizer": OptimizerConfig(
            learning_rate_rule="absolute", base_learning_rate=5e-4, betas=(0.9, 0.999)
        ),
    }
    return whole.model_copy(update=changes)


SUPERVISED: tuple[Recipe, ...] = (
    *(finetune_mae_vitb16, finetune_mae_vitl16, finetune_mae_vith14),
    *(finetune_beit_vitb16, finetune_beit2_vitb16, finetune_dinov2_vitl14),
    *(supervised_vits16, supervised_vitb16, finetune_small_data),
)


def _mae(
    recipe: str, size: str, rate: float, *, decay: float, drop_path: float, epochs: float
) -> RunConfig:
    patch_size = 14 if size == "huge" else 16
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(
            **VIT_SIZES[size],
            patch_size=patch_size,
            position="sincos",
            drop_path=drop_path,
            drop_path_rule="linear",
        ),
        objective=ClassificationConfig(layer_decay=decay),
        data=DataConfig(global_batch_size=1024),
        schedule=ScheduleConfig(length=epochs, warmup=5.0),
        optimizer=OptimizerConfig(
            base_learning_rate=rate, final_learning_rate=1e-6, betas=(0.9, 0.999)
        ),
    )


def _beit(recipe: str, rate: float) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(
            **VIT_SIZES["base"],
            position="relative",
            relative_tables="per_block",
            layer_scale=0.1,
            drop_path=0.1,
            drop_path_rule="linear",
        ),
        objective=ClassificationConfig(layer_decay=0.65),
        data=DataConfig(global_batch_size=1024),
        schedule=ScheduleConfig(length=100.0, warmup=20.0),
        optimizer=OptimizerConfig(
            learning_rate_rule="absolute",
            base_learning_rate=rate,
            final_learning_rate=1e-6,
            betas=(0.9, 0.999),
        ),
    )


def _deit(recipe: str, size: str) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(
            **VIT_SIZES[size],
            drop_path=0.1,
            drop_path_rule="linear",
            initialization="truncated_normal",
        ),
        objective=ClassificationConfig(pooling="cls", layer_decay=1.0),
        data=DataConfig(global_batch_size=1024),
        schedule=ScheduleConfig(length=300.0, warmup=5.0),
        optimizer=OptimizerConfig(
            base_learning_rate=2.5e-4, final_learning_rate=1e-5, betas=(0.9, 0.999)
        ),
    )
