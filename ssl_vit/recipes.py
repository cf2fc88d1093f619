"""Published recipes as functions; each docstring has the command, the source and the expected
result.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_vit.config import merged, read_yaml, to_plain, validate, with_current_names
from ssl_vit.data.config import DataConfig
from ssl_vit.errors import UserError
from ssl_vit.models.config import VIT_SIZES, VitConfig
from ssl_vit.objectives.config import DinoConfig, MaeConfig, SimMimConfig
from ssl_vit.overrides import note_renamed
from ssl_vit.run.config import CONFIG_FILE, RunConfig
from ssl_vit.run.minutes import apply_with_warmup, fill_in_warmup
from ssl_vit.run.smoke import smoke
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


def mae_vits16() -> RunConfig:
    """MAE, ViT-S/16. `ssl-vit pretrain mae_vits16 --run RUN data.shards=SHARDS`

    Source: He et al. 2021, table 8, at the smallest of DeiT's usual sizes; the paper itself starts
        at ViT-B.
    Expected: no published figure.
    """
    return _mae("mae_vits16", "small")


def mae_vitb16() -> RunConfig:
    """MAE, ViT-B/16. `ssl-vit pretrain mae_vitb16 --run RUN data.shards=SHARDS`

    Source: He et al. 2021, table 8 (800 epochs, batch 4096, AdamW 0.9/0.95, 1.5e-4 × batch/256,
        decay 0.05).
    Expected on ImageNet-1k after 800 epochs: fine-tuning 83.3, linear 65.1 (mmpretrain's
    reproduction).
    """
    return _mae("mae_vitb16", "base")


def mae_vitl16() -> RunConfig:
    """MAE, ViT-L/16. `ssl-vit pretrain mae_vitl16 --run RUN data.shards=SHARDS`

    Source: He et al. 2021, table 8.
    Expected on ImageNet-1k after 800 epochs: fine-tuning 85.4, linear 73.7 (mmpretrain's
    reproduction).
    """
    return _mae("mae_vitl16", "large")


def mae_vith14() -> RunConfig:
    """MAE, ViT-H/14. `ssl-vit pretrain mae_vith14 --run RUN data.shards=SHARDS`

    Source: He et al. 2021, table 8.
    Expected on ImageNet-1k after 1600 epochs: fine-tuning 86.9, linear 77.2 (the authors' release).
    """
    return _mae("mae_vith14", "huge", patch_size=14)


def mae_small_data() -> RunConfig:
    """MAE for a folder of a few thousand images.

    `ssl-vit pretrain mae_small_data --run RUN data.shards=SHARDS`

    A ViT of 6 × 192 on 96-pixel crops with 12-pixel patches (64 tokens), a light decoder, and a
    higher learning rate, since the batch is small and so are the steps. Images without a fixed "up"
    gain from `objective.vertical_flip=0.5`.
    Source: our own runs, docs/benchmarks.md, "The demo" and "Quality".
    Expected on ELPV's 1,960 solar cells: k-NN about 75 % after 30 epochs, 79 % after 575 (40
        minutes of two cores), 62 % untrained, 73 % raw pixels.
    """
    return RunConfig(
        recipe="mae_small_data",
        backbone=VitConfig(
            width=192, depth=6, heads=3, patch_size=12, image_size=96, position="sincos"
        ),
        objective=MaeConfig(decoder_width=128, decoder_depth=2, decoder_heads=4),
        data=DataConfig(global_batch_size=128, lanes=32),
        schedule=ScheduleConfig(length=200.0, warmup=10.0),
        optimizer=OptimizerConfig(base_learning_rate=2e-3, betas=(0.9, 0.95)),
        engine=EngineConfig(micro_batch_size=128),
        checkpoint=CheckpointConfig(every_steps=100),
        export=ExportConfig(every_steps=500),
    )


def simmim_vitb16() -> RunConfig:
    """SimMIM, ViT-B/16. `ssl-vit pretrain simmim_vitb16 --run RUN data.shards=SHARDS`

    Source: Xie et al. 2021, section 4.1, and the released configuration of ViT-B (800 epochs, batch
        2048, AdamW 0.9/0.999, 1e-4 × batch/512, decay 0.05, clipping at 5). Unlike there, positions
        are learned instead of shared relative ones, and the learning rate falls on a cosine (there
        by a tenth after epoch 700).
    Expected on ImageNet-1k: fine-tuning 83.8 (the authors' release).
    """
    return RunConfig(
        recipe="simmim_vitb16",
        backbone=VitConfig(
            **VIT_SIZES["base"],
            layer_scale=0.1,
            drop_path=0.1,
            initialization="truncated_normal",
        ),
        objective=SimMimConfig(),
        data=DataConfig(global_batch_size=2048),
        schedule=ScheduleConfig(length=800.0, warmup=10.0),
        optimizer=OptimizerConfig(base_learning_rate=5e-5, betas=(0.9, 0.999), clip_norm=5.0),
    )


def simmim_small_data() -> RunConfig:
    """SimMIM for a folder of a few thousand images.

    `ssl-vit pretrain simmim_small_data --run RUN data.shards=SHARDS`

    The network, batch and schedule of `mae_small_data`; squares of two by two patches are hidden.
    Images without a fixed "up" gain from `objective.vertical_flip=0.5`.
    Source: Xie et al. 2021 for the objective; sizes as in `mae_small_data`.
    Expected: not measured at length yet.
    """
    small = mae_small_data()
    return small.model_copy(
        update={
            "recipe": "simmim_small_data",
            "objective": SimMimConfig(mask_unit=24, min_crop_area=0.2),
        }
    )


def dinov2_small_data() -> RunConfig:
    """DINOv2 for a folder of a few thousand images.

    `ssl-vit pretrain dinov2_small_data --run RUN data.shards=SHARDS`

    A ViT of 6 × 192 on 96-pixel crops with 16-pixel patches (36 tokens), so that a processor makes
    enough updates. What a large run may leave to time is given here: Xavier initialization, since a
    normal of 0.02 lets a narrow network's class tokens say nothing of the image at first; and a
    teacher five times as sharp as its student, since at the paper's temperatures, of small batches,
    it became vaguer with every update and the run learned nothing. Images without a fixed "up" gain
    from `objective.vertical_flip=0.5`.
    Source: our own runs, docs/benchmarks.md, "Quality" and "A small DINOv2".
    Expected on ELPV's 1,960 solar cells after 148 epochs (40 minutes of two cores): k-NN about
        80 %, 71 % untrained, 73 % raw pixels, 81 % ImageNet features.
    """
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


def dino_vits16() -> RunConfig:
    """DINO, ViT-S/16. `ssl-vit pretrain dino_vits16 --run RUN data.shards=SHARDS`

    Source: Caron et al. 2021, section 3.2 "Implementation details" and appendix C (AdamW 5e-4 ×
        batch/256, decay 0.04 → 0.4, batch 1024, momentum 0.996 → 1, 2 × 224 and 10 × 96 pixels with
        a scale of 0.25; 800 epochs in table 2). Otherwise than in the released code the norm of all
        gradients together is clipped (there each parameter's) and drop path is the same in every
        block (there it grows from 0).
    Expected on ImageNet-1k: k-NN 74.5, linear 77.0 after 800 epochs; 69.3 and 74.0 after 100 (the
        authors' release).
    """
    return _dino("dino_vits16", ibot_weight=0.0)


def ibot_vits16() -> RunConfig:
    """iBOT, ViT-S/16. `ssl-vit pretrain ibot_vits16 --run RUN data.shards=SHARDS`

    Source: Zhou et al. 2021, section 4.1 and appendix C: DINO's, with a shared head of 8192
        prototypes and half of the global views masked by 10 to 50 %, block-wise. Clipping and drop
        path differ from the released code's as in `dino_vits16`.
    Expected on ImageNet-1k after 800 epochs: k-NN 75.2, linear 77.9 (the authors' release).
    """
    return _dino("ibot_vits16", prototypes=8192)


def dinov2_vitl16() -> RunConfig:
    """DINOv2's short run, ViT-L/16. `ssl-vit pretrain dinov2_vitl16 --run RUN data.shards=SHARDS`

    Source: Oquab et al. 2023, table 16 and the released configuration for ImageNet-1k: 100 "epochs"
        of 1,250 updates of 2,048, shared heads, a moving average as centering. Otherwise than there
        the norm of all gradients together is clipped (there backbone and heads apart).
    Expected on ImageNet-1k: k-NN 81.6, linear 82.9 (the authors' release).
    """
    return _dinov2("dinov2_vitl16", DinoConfig(centering="average"), batch=2048, updates=125_000)


def dinov2_vitl14_in22k() -> RunConfig:
    """DINOv2, ViT-L/14. `ssl-vit pretrain dinov2_vitl14_in22k --run RUN data.shards=SHARDS`

    Source: Oquab et al. 2023, table 16 and the released configuration for ImageNet-22k: 500
        "epochs" of 1,250 updates of 3,072, a head for each loss, Sinkhorn-Knopp; clipping as in
        `dinov2_vitl16`.
    Expected, trained on ImageNet-22k: k-NN 82.0, linear 84.5 on ImageNet-1k (the authors' release).
    """
    return _dinov2("dinov2_vitl14_in22k", _LARGE_HEADS, batch=3072, updates=625_000, patch_size=14)


def dinov2_vitg14() -> RunConfig:
    """DINOv2, ViT-g/14. `ssl-vit pretrain dinov2_vitg14 --run RUN data.shards=SHARDS`

    Source: Oquab et al. 2023, tables 16 and 17, with the released configuration for ImageNet-22k.
        The published model of this size saw LVD-142M, which is not public. Clipping as in
        `dinov2_vitl16`.
    Expected: no published figure on ImageNet-22k.
    """
    return _dinov2(
        *("dinov2_vitg14", _LARGE_HEADS), batch=3072, updates=625_000, patch_size=14, size="giant"
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        *(mae_vits16, mae_vitb16, mae_vitl16, mae_vith14, mae_small_data),
        *(simmim_vitb16, simmim_small_data),
        *(dinov2_small_data, dino_vits16, ibot_vits16),
        *(dinov2_vitl16, dinov2_vitl14_in22k, dinov2_vitg14),
    )
}


def find_recipe(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        UserError: There is none; lists those there are.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe named '{name}'", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()


def read_config(recipe: str, overrides: Sequence[str], is_smoke: bool) -> RunConfig:
    """A recipe's name, a `config.yaml` or the run folder of one, shrunk if asked, then the
    overrides.

    A file that leaves settings out takes them from the recipe that it names.

    Raises:
        UserError: A word or value that does not validate; another recipe's name as an override.
    """
    file = Path(recipe)
    if (file / CONFIG_FILE).is_file():
        file = file / CONFIG_FILE
    if file.suffix in (".yaml", ".yml"):
        values = read_yaml(file)
        base = values.get("recipe")
        if isinstance(base, str) and base in RECIPES:
            whole = RECIPES[base]()
            values, renamed = with_current_names(RunConfig, values, whole)
            note_renamed(renamed)
            values = merged(to_plain(whole), fill_in_warmup(values, whole.schedule))
        config = validate(RunConfig, values, str(file))
    else:
        config = find_recipe(recipe)
    if renamed := next((word for word in overrides if word.startswith("recipe=")), None):
        raise UserError(
            f"{renamed} would only change the name, not the settings",
            f"begin with that recipe instead of {recipe}",
        )
    return apply_with_warmup(smoke(config) if is_smoke else config, overrides)


def _mae(recipe: str, size: str, patch_size: int = 16) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        backbone=VitConfig(**VIT_SIZES[size], patch_size=patch_size, position="sincos"),
        objective=MaeConfig(),
        data=DataConfig(global_batch_size=4096),
        schedule=ScheduleConfig(length=800.0, warmup=40.0),
        optimizer=OptimizerConfig(),
        engine=EngineConfig(),
    )


def _dino(recipe: str, ibot_weight: float = 1.0, prototypes: int = 65_536) -> RunConfig:
    """A ViT-S/16 with the settings that DINO and iBOT share."""
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
    updates: int,
    patch_size: int = 16,
    size: str = "large",
) -> RunConfig:
    """Oquab et al. 2023. Their "epochs" are 1,250 updates whatever the data set has, and so the
    length is in updates.
    """
    is_short = updates == 125_000
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
            unit="steps", length=float(updates), warmup=1250.0 * (10 if is_short else 80)
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
