"""From our config to DeepSpeed's: a pure function, with golden JSON in the tests."""

from typing import Any

from ssl_vit.cost.memory import ZERO3_LIVE, bucket_of
from ssl_vit.training.config import EngineConfig, OptimizerConfig
from ssl_vit.training.plan import RunPlan


def deepspeed_config(
    engine_config: EngineConfig, optimizer_config: OptimizerConfig, plan: RunPlan
) -> dict[str, Any]:
    """The config for `deepspeed.initialize`."""
    zero = _zero_settings(engine_config, plan)
    # Where it does not, `ZeroModel` clips.
    clips = zero["stage"] > 0 and zero.get("compute_grad_norm", True)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optimizer_config.clip_norm if clips else 0.0,
        "zero_optimization": zero,
        # It waits for a GPU before every forward pass and after every step.
        "timers": {"throughput": {"enabled": False}},
        # We use torch's AdamW; DeepSpeed's own optimizers are compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if plan.precision != "float32":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": plan.precision,
            # Which gradients are communicated in the lower precision: none, so that they are
            # reduced in float32.
            "lower_precision_safe_modules": [],
        }
    return settings


def _zero_settings(engine_config: EngineConfig, plan: RunPlan) -> dict[str, Any]:
    stage = engine_config.stage_of(plan.world_size)
    settings: dict[str, Any] = {"stage": stage}
    whole_below = engine_config.zero3_whole_below
    if stage == 0:
        return settings
    bucket = bucket_of(plan.trained_parameters)
    settings["reduce_bucket_size"] = settings["allgather_bucket_size"] = bucket
    if engine_config.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": plan.pin_memory}
    if stage == 3:
        settings["stage3_param_persistence_threshold"] = whole_below
        # DeepSpeed's linear layer adds the bias after rounding, so that losses would differ from
        # those of other stages, and under autocast it keeps float32 inputs, more than it saves.
        settings["memory_efficient_linear"] = False
        settings["stage3_max_live_parameters"] = ZERO3_LIVE
        settings["stage3_max_reuse_distance"] = ZERO3_LIVE
        return settings
    if not engine_config.offload_optimizer and engine_config.fused_optimizer:
        settings["compute_grad_norm"] = False
    if plan.device == "cpu":
        # On a CPU, contiguous copies are not faster; they are two more copies of each gradient.
        settings["contiguous_gradients"] = False
    else:
        # DeepSpeed's default is to reduce gradients after the backward pass.
        settings["overlap_comm"] = plan.world_size > 1
    return settings
