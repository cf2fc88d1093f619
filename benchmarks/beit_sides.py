"""The BEiT training steps that `beit_steps.py` compares: ours, and transformers'.

Both start from the same weights and use the same pixels, masks, tokens and fused AdamW. Import only
after `ssl_vit.distributed.set_library_environment`.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mae_steps import TrainingStep, num_trained
from torch import Tensor, nn

from ssl_vit.models.relative_position import RelativePositionBias
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.beit.objective import Beit
from ssl_vit.objectives.beit.views import BeitBatch
from ssl_vit.objectives.config import BeitConfig
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.run.config import RunConfig
from ssl_vit.training.optimizer import build_optimizer

# Our name → transformers', of tensors that are the same in both.
_NAMES = {
    r"mask_token": "beit.embeddings.mask_token",
    r"predict\.(.*)": r"lm_head.\1",
    r"backbone\.cls_token": "beit.embeddings.cls_token",
    r"backbone\.patch_embed\.proj\.(.*)": r"beit.embeddings.patch_embeddings.projection.\1",
    r"backbone\.rel_pos_bias\.(.*)": r"beit.shared_position_bias.\1",
    r"backbone\.blocks\.(\d+)\.norm1\.(.*)": r"beit.layers.\1.layernorm_before.\2",
    r"backbone\.blocks\.(\d+)\.norm2\.(.*)": r"beit.layers.\1.layernorm_after.\2",
    r"backbone\.blocks\.(\d+)\.mlp\.(.*)": r"beit.layers.\1.mlp.\2",
    r"backbone\.blocks\.(\d+)\.ls([12])\.gamma": r"beit.layers.\1.lambda_\2",
    r"backbone\.blocks\.(\d+)\.attn\.proj\.(.*)": r"beit.layers.\1.attention.o_proj.\2",
    r"backbone\.blocks\.(\d+)\.attn\.qkv\.([qv])_bias": r"beit.layers.\1.attention.\2_proj.bias",
    r"backbone\.norm\.(.*)": r"layernorm.\1",
}


class GivenTokens(Beit):
    """Beit that is told the tokens, and changes no colors."""

    tokens: Tensor
    """(B, N) int64."""

    def _images_and_tokens(self, batch: BeitBatch) -> tuple[Tensor, Tensor]:
        return self.pixel_scale(batch.images), self.tokens


def our_step(
    config: RunConfig,
    batch: BeitBatch,
    tokens: Tensor | None,
    watch: Callable[[Beit, torch.optim.Optimizer], None] | None = None,
) -> TrainingStep:
    """Our objective in a plain torch loop.

    Args:
        config: The run to compute.
        batch: On the device.
        tokens: (B, N) int64, in place of the tokenizer's and of the color jitter; None: both are a
            part of the step.
        watch: Called with objective and optimizer before the first step.
    """
    objective = build_beit(config, Beit if tokens is None else GivenTokens)
    if isinstance(objective, GivenTokens) and tokens is not None:
        objective.tokens = tokens
    objective.to(torch.device(config.engine.device)).train()
    optimizer = build_optimizer(objective.parameter_groups(), config.optimizer, fused=True)
    if watch is not None:
        watch(objective, optimizer)

    def step() -> Tensor:
        loss = objective(batch, 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0)
        return loss.detach()

    return TrainingStep(step, num_trained(objective))


def build_beit(config: RunConfig, kind: type[Beit] = Beit) -> Beit:
    """Our objective with its first weights, the same in every call. The table of relative positions
    is random instead of zero, so that equal losses say something of it.
    """
    assert isinstance(config.objective, BeitConfig)
    torch.manual_seed(config.seed)
    scale = PixelScale(config.data.pixel_mean, config.data.pixel_std)
    objective = kind(config.objective, VisionTransformer(config.backbone), scale)
    table = objective.backbone.get_submodule("rel_pos_bias")
    assert isinstance(table, RelativePositionBias)
    nn.init.normal_(table.relative_position_bias_table)
    return objective


def transformers_step(
    config: RunConfig, batch: BeitBatch, tokens: Tensor, hidden_only: bool
) -> TrainingStep:
    """transformers' BeitForMaskedImageModeling in the same loop, from our weights.

    Args:
        config: The run to compute.
        batch: On the device; its images are normalized beforehand.
        tokens: (B, N) int64.
        hidden_only: Call its parts so that logits are computed for hidden patches only, as ours
            are. The class itself computes those of all patches.
    """
    from transformers import BeitConfig as TransformersConfig
    from transformers import BeitForMaskedImageModeling

    sizes, device = config.backbone, torch.device(config.engine.device)
    model: Any = BeitForMaskedImageModeling(
        TransformersConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=int(sizes.width * sizes.mlp_ratio),
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            vocab_size=config.objective.num_codes,
            use_mean_pooling=True,  # without, there is another LayerNorm
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            layer_scale_init_value=sizes.layer_scale,
            layer_norm_eps=1e-6,
            drop_path_rate=0.0,
        )
    )
    model.load_state_dict(in_transformers(build_beit(config)))
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.base_learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    scale = PixelScale(config.data.pixel_mean, config.data.pixel_std).to(device)
    images, hidden = scale(batch.images), batch.hidden
    labels = tokens[hidden]

    def forward() -> Tensor:
        if not hidden_only:
            return model(images, bool_masked_pos=hidden, labels=labels).loss
        found = model.layernorm(model.beit(images, bool_masked_pos=hidden).last_hidden_state)
        return F.cross_entropy(model.lm_head(found[:, 1:][hidden]), labels)

    def step() -> Tensor:
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return TrainingStep(step, num_trained(model))


def in_transformers(ours: Beit) -> dict[str, Tensor]:
    """The weights of our objective under the names of BeitForMaskedImageModeling."""
    found = {}
    for name, parameter in ours.named_parameters():
        value = parameter.detach().clone()
        if matched := re.fullmatch(r"backbone\.blocks\.(\d+)\.attn\.qkv\.weight", name):
            place = f"beit.layers.{matched[1]}.attention"
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{place}.{letter}_proj.weight"] = part.clone()
            continue
        (new,) = [re.sub(old, to, name) for old, to in _NAMES.items() if re.fullmatch(old, name)]
        found[new] = value.view(1, 1, -1) if name == "mask_token" else value
    return found
