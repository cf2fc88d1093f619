"""Recipes of visual tokenizers and of BEiT, which predicts their tokens (Bao et al. 2021, arXiv
2106.08254; Peng et al. 2022, arXiv 2208.06366).
"""

from typing import Any

from ssl_vit.data.config import DataConfig
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.objectives.config import BeitConfig, TokenizerConfig
from ssl_vit.recipes.masked import mae_small_data
from ssl_vit.recipes.recipe import Recipe, recipe
from ssl_vit.run.config import RunConfig
from ssl_vit.training.config import OptimizerConfig, ScheduleConfig

# A tokenizer reads pixels in [−1, 1], as in the authors' code.
_HALF = (0.5, 0.5, 0.5)
_NEEDS = (
    "Needs a tokenizer: objective.tokenizer=RUN, of a tokenizer recipe, or DALL-E's encoder. "
    "Unlike in the authors' code, colors are jittered after the crop, and the mask token and the "
    "bias tables do not decay."
)


@recipe(
    method="VQ-KD",
    network="ViT-B/16",
    source="Peng et al. 2022, arXiv 2208.06366",
    details=(
        "the released configuration (100 epochs, batch 512, AdamW 0.9/0.99, 5e-5 × batch/128, "
        "decay 1e-4, 8192 codes of 32); unlike there, unused codes are replaced, and the encoder "
        "is not scaled by depth"
    ),
    expected="ImageNet-1k, a DINO teacher: 100 % of the codes are used (the authors' release)",
    notes="Needs a teacher: objective.teacher=RUN, of any objective.",
)
def tokenizer_vqkd_vitb16() -> RunConfig:
    return RunConfig(
        recipe="tokenizer_vqkd_vitb16",
        backbone=VitConfig(**VIT_SIZES["base"], initialization="truncated_normal"),
        objective=TokenizerConfig(codebook_size=8192),
        data=DataConfig(global_batch_size=512, pixel_mean=_HALF, pixel_std=_HALF),
        schedule=ScheduleConfig(length=100.0, warmup=10.0),
        optimizer=OptimizerConfig(
            base_learning_rate=1e-4,  # × batch / 256
            final_learning_rate=1e-5,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            final_weight_decay=1e-4,
        ),
    )


@recipe(
    method="Tokenizer",
    network="ViT of 4 × 192 for a few thousand images",
    source="Peng et al. 2022, arXiv 2208.06366",
    details=(
        "for the objective, with pixels as the target; small batches, because the encoder needs "
        "many steps before its codes carry anything; the schedule is our own"
    ),
    expected="not measured yet",
    notes=(
        "Tokens carry more meaning with objective.target=features objective.teacher=RUN (any "
        "run); objective.target=kmeans needs only a few steps. `explained` in the log should rise "
        "well above 0."
    ),
)
def tokenizer_pixels_small_data() -> RunConfig:
    whole = mae_small_data()
    data = DataConfig(global_batch_size=32, lanes=32, pixel_mean=_HALF, pixel_std=_HALF)
    changes: dict[str, Any] = {
        "recipe": "tokenizer_pixels_small_data",
        "backbone": whole.backbone.model_copy(
            update={"depth": 4, "position": "learned", "initialization": "truncated_normal"}
        ),
        "objective": TokenizerConfig(
            target="pixels", codebook_start=0.5, codebook_momentum=0.95, min_crop_area=0.2
        ),
        "data": data,
        "schedule": ScheduleConfig(length=60.0, warmup=5.0),
        "optimizer": OptimizerConfig(
            learning_rate_rule="absolute",
            base_learning_rate=5e-4,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            final_weight_decay=1e-4,
        ),
    }
    return whole.model_copy(update=changes)


@recipe(
    method="BEiT",
    network="ViT-B/16",
    source="Bao et al. 2021, arXiv 2106.08254",
    details=(
        "the released configuration (800 epochs of ImageNet-1k, batch 2048, AdamW "
        "0.9/0.999, 1.5e-3, decay 0.05, clipping at 3); the tokenizer is your own instead of "
        "DALL-E's"
    ),
    expected=(
        "ImageNet-1k, DALL-E's tokens: fine-tuning 83.2 after 800 epochs (the paper), 83.1 after "
        "300 (mmpretrain's reproduction); a token accuracy of 5 % is normal"
    ),
    notes=_NEEDS,
)
def beit_vitb16() -> RunConfig:
    return _beit("beit_vitb16", "base", layer_scale=0.1)


@recipe(
    method="BEiT",
    network="ViT-L/16",
    source="Bao et al. 2021, arXiv 2106.08254",
    details="as beit_vitb16, with LayerScale from 1e-5",
    notes=_NEEDS,
    expected="ImageNet-1k, DALL-E's tokens: fine-tuning 85.2 after 800 epochs (the paper)",
)
def beit_vitl16() -> RunConfig:
    return _beit("beit_vitl16", "large", layer_scale=1e-5)


@recipe(
    method="BEiT v2",
    network="ViT-B/16",
    source="Peng et al. 2022, arXiv 2208.06366",
    details=(
        "the released configuration for 300 epochs (batch 2048, AdamW 0.9/0.98, 1.5e-3, decay "
        "0.05, clipping at 3, no drop path, patches aggregated after block 9); for 1600 epochs: "
        "optimizer.betas=[0.9,0.999] backbone.drop_path=0.1"
    ),
    expected=(
        "ImageNet-1k, tokens of a CLIP teacher: fine-tuning 85.0 after 300 epochs, 85.5 and linear "
        "80.1 after 1600 (the paper)"
    ),
    notes=_NEEDS,
)
def beit2_vitb16() -> RunConfig:
    config = _beit("beit2_vitb16", "base", layer_scale=0.1)
    changes = {
        "backbone": config.backbone.model_copy(update={"drop_path": 0.0}),
        "objective": BeitConfig(aggregate_after=9, min_crop_area=0.2),
        "schedule": ScheduleConfig(length=300.0, warmup=10.0),
        "optimizer": config.optimizer.model_copy(update={"betas": (0.9, 0.98)}),
    }
    return config.model_copy(update=changes)


@recipe(
    method="BEiT",
    network="ViT of 6 × 192 for a few thousand images",
    source="Bao et al. 2021, arXiv 2106.08254",
    details=(
        "for the objective; network and schedule are those of mae_small_data (fixed positions: "
        "relative ones and LayerScale learn much more slowly in a short run), in batches of 32; no "
        "color jitter"
    ),
    expected=(
        "1,960 solar cells (ELPV), tokens of our own MAE's features, ten minutes of two cores: "
        "k-NN 78 %, linear 79 %, as MAE has; untrained 62 and 76 %"
    ),
    notes=(
        "Needs a tokenizer: objective.tokenizer=RUN, of tokenizer_pixels_small_data, best with "
        "objective.target=features. For images without a fixed orientation, "
        "objective.vertical_flip=0.5 helps."
    ),
)
def beit_small_data() -> RunConfig:
    whole = mae_small_data()
    changes: dict[str, Any] = {
        "recipe": "beit_small_data",
        "objective": BeitConfig(min_block_patches=4, min_crop_area=0.2, color_jitter=0.0),
        "data": DataConfig(global_batch_size=32, lanes=32),
        "optimizer": OptimizerConfig(
            learning_rate_rule="absolute", base_learning_rate=1e-3, betas=(0.9, 0.95)
        ),
    }
    return whole.model_copy(update=changes)


TOKENS: tuple[Recipe, ...] = (
    *(tokenizer_vqkd_vitb16, tokenizer_pixels_small_data),
    *(beit_vitb16, beit_vitl16, beit2_vitb16, beit_small_data),
)


def _beit(recipe: str, size: str, layer_scale: float) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(
            **VIT_SIZES[size],
            position="relative",
            layer_scale=layer_scale,
            drop_path=0.1,
            drop_path_rule="linear",
            initialization="depth_scaled",
        ),
        objective=BeitConfig(),
        data=DataConfig(global_batch_size=2048),
        schedule=ScheduleConfig(length=800.0, warmup=10.0),
        optimizer=OptimizerConfig(
            learning_rate_rule="absolute",
            base_learning_rate=1.5e-3,
            final_learning_rate=1e-5,
            betas=(0.9, 0.999),
            clip_norm=3.0,
        ),
    )
