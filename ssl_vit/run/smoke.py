"""Any recipe in seconds on one core, for CI and for trying a command line."""

from ssl_vit.config import merged, to_plain, validate
from ssl_vit.run.config import RunConfig


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe in seconds: 20 steps of 8 images through a network a thousand times smaller.

    Every switch of the objective stays as it is; only sizes, lengths and precision shrink.
    """
    shrink = {
        "backbone": config.backbone.shrunk(),
        "objective": config.objective.shrunk(config.backbone),
        "data": {"global_batch_size": 8, "lanes": 4, "shuffle_block": 64},
        "schedule": {"unit": "steps", "length": 20.0, "warmup": 4.0},
        # A rate at which twenty steps change the loss visibly.
        "optimizer": {"learning_rate_rule": "absolute", "base_learning_rate": 1e-3},
        "engine": {"precision": "float32", "micro_batch_size": 4, "workers": 1},
        "checkpoint": {"every_steps": 5},
        "export": {"every_steps": 20},
        "log": {"norm_every_steps": 1, "panel_every_steps": 20},
    }
    twin = f"the smoke twin of {config.recipe}"
    return validate(RunConfig, merged(to_plain(config), shrink), twin)
