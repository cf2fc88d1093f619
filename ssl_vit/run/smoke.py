"""Any recipe in seconds on one core, for CI and for trying a command line."""

from typing import assert_never

from ssl_vit.config import merged, to_plain, validate
from ssl_vit.objectives.config import DinoConfig, MaeConfig
from ssl_vit.run.config import RunConfig


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe in seconds: 20 updates of 8 images through a network a thousand times
    smaller.

    Every switch of the objective stays as it is; only sizes, lengths and precision shrink.
    """
    match config.objective:
        case MaeConfig():
            objective = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
        case DinoConfig():
            objective = {
                "prototypes": 64,
                "bottleneck": 16,
                "head_hidden": 32,
                "ibot_prototypes": 32 if config.objective.ibot_prototypes else 0,
                "ibot_bottleneck": 16,
                "local_crops": min(2, config.objective.local_crops),
                "local_size": 2 * config.backbone.patch_size,
            }
        case _:
            assert_never(config.objective)
    shrink = {
        "backbone": {
            "width": 48,
            "depth": 2,
            "heads": 3,
            "image_size": 4 * config.backbone.patch_size,
        },
        "objective": objective,
        "data": {"global_batch_size": 8, "lanes": 4, "shuffle_block": 64},
        "schedule": {"unit": "steps", "length": 20.0, "warmup": 4.0},
        # A rate at which twenty updates move the loss visibly.
        "optimizer": {"learning_rate_rule": "absolute", "base_learning_rate": 1e-3},
        "engine": {"precision": "float32", "micro_batch_size": 4, "workers": 1},
        "checkpoint": {"every_steps": 5},
        "export": {"every_steps": 20},
        "log": {"norm_every_steps": 1, "panel_every_steps": 20},
    }
    twin = f"the smoke twin of {config.recipe}"
    return validate(RunConfig, merged(to_plain(config), shrink), twin)
