"""Self-distillation: the student is trained to match its EMA teacher's output on other views of the
image.

DINO (Caron et al. 2021, arXiv 2104.14294), iBOT (Zhou et al. 2021, arXiv 2111.07832) and DINOv2
(Oquab et al. 2023, arXiv 2304.07193) are one objective; they differ in the weights of its three
losses and in its settings. Student and teacher are in one module, so that one engine shards both,
and all passes of a micro-batch are one forward call.
"""

import copy
import math
from typing import assert_never

import torch
from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.initialization import initialize_token
from ssl_vit.models.patches import blank_patches
from ssl_vit.objectives.color_jitter import apply_color_jitter
from ssl_vit.objectives.dino.config import NUM_GLOBALS, DinoConfig
from ssl_vit.objectives.dino.losses import Center, koleo, patch_loss, sinkhorn, view_loss
from ssl_vit.objectives.dino.network import Network
from ssl_vit.objectives.dino.views import DinoBatch
from ssl_vit.objectives.ema import EmaTeacher
from ssl_vit.objectives.layer_rates import Facts, LayerRates, groups_by_facts
from ssl_vit.objectives.objective import (
    Compilable,
    Objective,
    Observed,
    ParameterGroup,
    StepOutput,
    decays,
)
from ssl_vit.objectives.pictures import feature_panels, rows_of
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.ranks import num_ranks
from ssl_vit.schedules import cosine

_SHOWN = 6  # images per panel

# B images, L local views, V = 2 + L views, N patches, R masked patches, D width, C prototypes.


class Dino(Objective):
    """Student, teacher, and the losses between them.

    Args:
        config: Settings of the objective.
        backbone: The student's backbone; the teacher starts as a copy of the student.
        pixel_scale: Normalization of the images.
        total_steps: Optimizer steps in the run, the length of its schedules.
    """

    def __init__(
        self,
        config: DinoConfig,
        backbone: Backbone,
        pixel_scale: PixelScale,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.config, self.pixel_scale, self.total_steps = config, pixel_scale, total_steps
        self.student = Network(config, backbone)
        if config.ibot_weight:
            self.mask_token = nn.Parameter(torch.zeros(backbone.config.width))
            initialize_token(self.mask_token)
        self.teacher = EmaTeacher(copy.deepcopy(self.student))
        # Stochastic depth applies to the student only.
        self.teacher.eval()
        self.center: Center | None = None
        self.patch_center: Center | None = None
        if config.centering == "average":
            self.center = Center(config.prototypes, config.center_momentum)
            if config.ibot_weight:
                prototypes = config.ibot_prototypes or config.prototypes
                self.patch_center = Center(prototypes, config.center_momentum)

    @property
    def backbone(self) -> Backbone:  # type: ignore[override] # a module has one name only
        """The student's backbone."""
        return self.student.backbone

    def train(self, mode: bool = True) -> "Dino":
        """As :meth:`torch.nn.Module.train`; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: DinoBatch, step: int) -> StepOutput:
        """The weighted sum of the losses, in float32."""
        config = self.config
        views, local = self._views(batch)
        masked_indices = batch.masked if config.ibot_weight else None
        targets, patch_targets = self._targets(views, batch, masked_indices, step)
        filler = self.mask_token if config.ibot_weight else None
        hidden = batch.hidden if config.ibot_weight else None
        output = self.student(views, hidden, filler, masked_indices, local)
        loss, metrics = self._losses(
            *(targets, output.logits, output.cls),
            *(patch_targets, output.patch_logits, batch.weights),
        )
        num_images = len(batch.numbers)
        observed = Observed(
            output.cls[:num_images].detach(),
            # The most likely prototype of each first global view.
            targets[:num_images].argmax(dim=1),
            config.prototypes,
        )
        return StepOutput(loss, metrics, observed)

    def _losses(
        self,
        targets: Tensor,
        logits: Tensor,
        cls: Tensor,
        patch_targets: Tensor,
        patch_logits: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; and its parts and measures of the targets, detached.

        Args:
            targets: (2 B, C) of the global views' class tokens.
            logits: (V B, C) of all views' class tokens.
            cls: (2 B, D) class tokens of the global views.
            patch_targets, patch_logits, weights: (R, C), (R, C) and (R,) of the masked patches.
        """
        config, num_images = self.config, len(targets) // NUM_GLOBALS
        losses: dict[str, Tensor] = {}
        if config.dino_weight:
            losses["dino_loss"] = view_loss(
                targets.unflatten(0, (NUM_GLOBALS, num_images)),
                logits.unflatten(0, (-1, num_images)),
                config.student_temperature,
            )
        if config.ibot_weight:
            losses["ibot_loss"] = patch_loss(
                patch_targets, patch_logits, weights, config.student_temperature
            )
        if config.koleo_weight and num_images > 1:
            by_view = cls.unflatten(0, (NUM_GLOBALS, num_images))
            losses["koleo_loss"] = torch.stack([koleo(view) for view in by_view]).sum()
        factors = {
            "dino_loss": config.dino_weight,
            "ibot_loss": config.ibot_weight,
            "koleo_loss": config.koleo_weight,
        }
        loss = torch.stack([factors[name] * value for name, value in losses.items()]).sum()
        parts = {name: value.detach() for name, value in losses.items()}
        return loss, {**parts, **_describe(targets)}

    def compilable(self) -> list[Compilable]:
        """See :class:`Objective`."""
        found = [Compilable(self, "_prepare"), Compilable(self, "_losses", (3, 4, 5))]
        for network in (self.student, self.teacher.module):
            assert isinstance(network, Network)
            found.append(Compilable(network.head, "forward", (0,)))
            if network.patch_head is not None:
                found.append(Compilable(network.patch_head, "forward", (0,)))
        if num_ranks() == 1 and self.config.centering == "sinkhorn":
            found.append(Compilable(self, "_balance", (0, 2)))
        return found

    @torch.no_grad()
    def _views(self, batch: DinoBatch) -> tuple[Tensor, Tensor | None]:
        """The augmented, normalized global views, and the local views if there are any."""
        count = len(batch.images)
        views = self._prepare(batch.images, batch.color_jitter[:count])
        if not self.config.local_crops:
            return views, None
        return views, self._prepare(batch.local, batch.color_jitter[count:])

    def _prepare(self, images: Tensor, rows: Tensor) -> Tensor:
        """Apply color jitter, blur and pixel normalization."""
        return self.pixel_scale(apply_color_jitter(images, rows) * 255)

    @torch.no_grad()
    def _targets(
        self, views: Tensor, batch: DinoBatch, masked_indices: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """The teacher's targets: (2 B, C) for the class tokens, (R, C) for the masked patches."""
        teacher_output = self.teacher(views, None, None, masked_indices)
        targets = self._sharpen(teacher_output.logits, self.center, step)
        if masked_indices is None:
            return targets, teacher_output.patch_logits
        counted = batch.weights > 0
        return targets, self._sharpen(teacher_output.patch_logits, self.patch_center, step, counted)

    def _sharpen(
        self, logits: Tensor, center: Center | None, step: int, counted: Tensor | None = None
    ) -> Tensor:
        """(R, C) teacher logits → targets; ``counted`` is false for padding."""
        temperature = self.teacher_temperature(step)
        match self.config.centering:
            case "sinkhorn":
                # A tensor: otherwise each number would be compiled again.
                tensor = torch.full((), temperature, device=logits.device)
                return self._balance(logits, tensor, counted)
            case "average":
                assert center is not None
                return center(logits, temperature, step, counted)
            case "none":
                return (logits.float() / temperature).softmax(dim=1)
        assert_never(self.config.centering)

    def _balance(self, logits: Tensor, temperature: Tensor, counted: Tensor | None) -> Tensor:
        """See :func:`sinkhorn`; a method, so that it can be compiled."""
        return sinkhorn(logits, temperature, counted)

    def teacher_temperature(self, step: int) -> float:
        """Temperature at optimizer step ``step``: linear warm-up, then constant (Caron et al. 2021,
        appendix C).
        """
        config = self.config
        begin, end = config.warmup_teacher_temperature, config.teacher_temperature
        warmup = config.temperature_warmup * self.total_steps
        return begin + (end - begin) * min(1.0, step / warmup) if warmup else end

    def teacher_momentum(self, step: int) -> float:
        """EMA momentum after optimizer step ``step``: a cosine (Caron et al. 2021, section 3.1)."""
        config = self.config
        return cosine(config.momentum, config.final_momentum, step / max(1, self.total_steps))

    def after_step(self, step: int) -> None:
        """Update the teacher and the centers."""
        self.teacher.follow(self.student, self.teacher_momentum(step))
        for center in (self.center, self.patch_center):
            if center is not None:
                center.follow()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups by depth, as in Oquab et al.: the learning rate decreases from each block to the
        one below it, is scaled down further for the patch embedding, and is 0 for the prototypes
        at first.
        """
        rates = LayerRates(self.backbone, self.config.layer_decay)
        frozen_steps = round(self.config.freeze_prototypes * self.total_steps)

        def facts_of(name: str, parameter: nn.Parameter) -> Facts:
            rate = self._rate_of(name, rates)
            if name.endswith("prototypes.weight"):
                # Its length has no effect, so decay would only change its learning rate.
                return Facts("prototypes", rate, 0.0, frozen_steps)
            decayed = decays(name, parameter)
            return Facts("decayed" if decayed else "plain", rate, float(decayed))

        return groups_by_facts(self, facts_of)

    def _rate_of(self, name: str, rates: LayerRates) -> float:
        if name == "mask_token":  # the same rate as the class token
            return rates.smallest
        own = name.removeprefix("student.backbone.")
        if own == name:
            return 1.0
        patch_embed = self.config.patch_embed_lr_scale if own.startswith("patch_embed.") else 1.0
        return rates.of(own) * patch_embed

    @torch.no_grad()
    def panels(self, batch: DinoBatch) -> dict[str, Tensor]:
        """The student's views of up to 6 images (global views with masked patches gray, then local
        views), and the teacher's features of the unmasked first view.
        """
        count, (views, local) = len(batch.numbers), self._views(batch)
        seen = views
        if self.config.ibot_weight:
            seen = blank_patches(views, batch.hidden, self.backbone.config.stride)
        columns = [
            view[:_SHOWN]
            for group in ([seen] if local is None else [seen, local])
            for view in self.pixel_scale.back(group).split(count)
        ]
        first = views[:count][:_SHOWN]
        features = feature_panels(self.exported_backbone, self.pixel_scale, first)
        return {"views": rows_of(columns), **features}

    def exported(self) -> dict[str, nn.Module]:
        """The teacher's backbone, which performs better (Caron et al. 2021, figure 6)."""
        network = self.teacher.module
        assert isinstance(network, Network)
        return {"backbone": network.backbone}


def _describe(targets: Tensor) -> dict[str, Tensor]:
    """Mean entropy of the targets (0 to log C), and KL divergence of their batch mean from the
    uniform distribution (0 to log C). Collapse to one prototype has entropy 0 and divergence log C;
    collapse to uniform targets the reverse (Caron et al. 2021, section 5.3).
    """
    entropy = -torch.special.xlogy(targets, targets).sum(dim=1).mean()
    mean = targets.mean(dim=0)
    return {
        "teacher_entropy": entropy,
        "kl_to_uniform": math.log(targets.shape[1]) + torch.special.xlogy(mean, mean).sum(),
    }
