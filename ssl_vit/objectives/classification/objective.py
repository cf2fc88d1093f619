"""Classification: mixed images, soft targets, and an average of the weights.

He et al. 2021 (MAE), arXiv 2111.06377, appendix A.1 "End-to-end fine-tuning"; Touvron et al. 2022
(DeiT III), arXiv 2204.07118.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.models.backbone import Backbone
from ssl_vit.models.patches import blank_patches
from ssl_vit.objectives.classification.config import ClassificationConfig
from ssl_vit.objectives.classification.head import Classifier, Kept
from ssl_vit.objectives.classification.head_fit import fit_head, hold_out_views
from ssl_vit.objectives.classification.views import LabeledBatch
from ssl_vit.objectives.ema import EmaTeacher
from ssl_vit.objectives.layer_rates import Facts, LayerRates, groups_by_facts
from ssl_vit.objectives.masking import visible_and_hidden
from ssl_vit.objectives.objective import (
    HeadStart,
    Objective,
    Observed,
    ParameterGroup,
    StepOutput,
    decays,
)
from ssl_vit.objectives.pictures import feature_panels, rows_of
from ssl_vit.objectives.pixels import PixelScale

# B images, C classes.

_SHOWN = 8  # images in a panel


class Classification(Objective):
    """A classifier and, if wanted, a moving average of it, which is evaluated and exported."""

    class_weights: Tensor | None
    label_table: Tensor | None
    """(L, C) float32, the classes of each of L labels; None where each label is a class."""

    def __init__(
        self, config: ClassificationConfig, backbone: Backbone, pixel_scale: PixelScale
    ) -> None:
        super().__init__()
        self.config, self.pixel_scale = config, pixel_scale
        self.network = Classifier(backbone, config.pooling, config.num_classes, config.dropout)
        self.average: EmaTeacher | None = None
        if config.ema_momentum:
            self.average = EmaTeacher(copy.deepcopy(self.network))
            self.average.eval()
        weights = config.weights()
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights), persistent=False
        )

        table = None
        if config.label_separator:
            sets = config.sets_of_labels()
            table = torch.zeros(len(sets), config.num_classes)
            for row, numbers in enumerate(sets):
                table[row, numbers] = 1.0
        self.register_buffer("label_table", table, persistent=False)

    @property
    def backbone(self) -> Backbone:  # type: ignore[override] - a module has one name only
        """The trained one."""
        return self.network.backbone

    @property
    def evaluated(self) -> Classifier:
        """The average, or without one the trained network."""
        network = self.network if self.average is None else self.average.module
        assert isinstance(network, Classifier)
        return network

    def train(self, mode: bool = True) -> "Classification":
        """As :meth:`torch.nn.Module.train`; the average stays in evaluation mode."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def forward(self, batch: LabeledBatch, step: int) -> StepOutput:
        """Mean loss of a micro-batch. ``accuracy`` is that of each mixed image's larger part; with
        several labels per image, that of all binary decisions.
        """
        images = mix_images(self.pixel_scale(batch.images), batch.shares, batch.boxes)
        targets = self._targets(batch)
        logits, pooled = self.network(images, self._kept(batch.hidden))
        loss = self._loss(logits, targets)
        if self.label_table is not None:
            accuracy = ((logits.detach() > 0) == (targets > 0)).float().mean()
        else:
            larger = torch.where(batch.shares >= 0.5, batch.labels, batch.labels.flip(0))
            accuracy = (logits.detach().argmax(dim=1) == larger).float().mean()
        return StepOutput(loss, {"accuracy": accuracy}, Observed(pooled.detach()))

    def _kept(self, hidden: Tensor) -> Kept | None:
        """The patches that a step sees; None: all."""
        if not (count := self.config.num_dropped(self.backbone.config)):
            return None
        return Kept(hidden, visible_and_hidden(hidden, count)[0])

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over images; both (B, C)."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        if self.config.loss == "cross_entropy":
            return F.cross_entropy(logits, targets, weight=weights)
        if self.label_table is not None:
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        if weights is None:
            return each.mean()
        of_image = (targets * weights).sum(dim=1) / targets.sum(dim=1)
        return (each.mean(dim=1) * of_image).mean()

    def _classes_of(self, labels: Tensor) -> Tensor:
        """(B, C) float32: one for each class of an image with these (B,) labels."""
        if self.label_table is not None:
            return self.label_table[labels]
        return F.one_hot(labels, self.config.num_classes).float()

    def _targets(self, batch: LabeledBatch) -> Tensor:
        """(B, C) float32: one for each image's class, mixed as the images are, then smoothed; with
        `binary` 1 for each class of which there is a part.
        """
        ones = self._classes_of(batch.labels)
        shares = batch.shares.unsqueeze(1)
        mixed = shares * ones + (1 - shares) * ones.flip(0)
        if self.config.loss == "binary":
            return (mixed > 0).float()
        smoothing = self.config.label_smoothing
        return (1 - smoothing) * mixed + smoothing / self.config.num_classes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """See :class:`Objective`; of the evaluated network."""
        found: Tensor = self.evaluated(self.pixel_scale(images))[0]
        return found

    @torch.no_grad()
    def head_inputs(self, batch: LabeledBatch) -> Tensor:
        """See :class:`Objective`."""
        images = self.pixel_scale(batch.images)
        pooled: Tensor = self.network(images, self._kept(batch.hidden))[1]
        return pooled

    def fit_head(self, inputs: Tensor, labels: Tensor, numbers: Tensor) -> HeadStart:
        """See :class:`Objective`; of the trained network and of its average."""
        is_multi_label = self.label_table is not None
        strata = torch.zeros_like(labels) if is_multi_label else labels
        # Of each class's decision the same strength of penalty, however many classes there are.
        scale = self.config.num_classes if self.config.loss == "binary" else 1

        def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
            return scale * self._loss(logits, targets)

        held = hold_out_views(strata, numbers)
        targets = self._classes_of(labels)
        found = fit_head(inputs, targets, held, loss_of, is_multi_label=is_multi_label)
        weight, bias = found.folded()
        layers = {"head.weight": weight, "head.bias": bias}
        if self.config.pooling == "mean":
            # Its own norm standardizes the features: in those as they are, which have a large mean,
            # the first steps of AdamW would shift all logits.
            layers = {"head.weight": found.weight, "head.bias": found.bias}
            layers |= {"fc_norm.weight": found.scale, "fc_norm.bias": -found.mean * found.scale}
        networks = ["network", *(["average.module"] if self.average is not None else [])]
        state = {
            f"{network}.{name}": value.cpu()
            for network in networks
            for name, value in layers.items()
        }
        tenth = "" if found.accuracy is None else f"; {found.accuracy:.1%} of a held-out tenth"
        views = f"{len(inputs):,} views of {len(numbers.unique()):,} training images"
        return HeadStart(
            state, f"head: a linear probe of {views} (L2 penalty {found.penalty:g}{tenth})"
        )

    def after_step(self, step: int) -> None:
        """Move the average; at first it follows faster, by TensorFlow's rule for its own."""
        if self.average is not None:
            momentum = min(self.config.ema_momentum, (1 + step) / (10 + step))
            self.average.follow(self.network, momentum)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups by depth: the learning rate falls from each block to the one below it; the head
        has all of it (Bao et al. 2021, arXiv 2106.08254, appendix H).
        """
        rates = LayerRates(self.backbone, self.config.layer_decay)

        def facts_of(name: str, parameter: nn.Parameter) -> Facts:
            own = name.removeprefix("network.backbone.")
            rate = 1.0 if own == name else rates.of(own)
            decayed = decays(name, parameter)
            return Facts("decayed" if decayed else "plain", rate, float(decayed))

        return groups_by_facts(self, facts_of)

    def exported(self) -> dict[str, nn.Module]:
        """The backbone that is evaluated, and the whole classifier."""
        return {"backbone": self.evaluated.backbone, "classifier": self.evaluated}

    def described(self) -> dict[str, dict[str, Any]]:
        """See :class:`Objective`: how features are pooled, and the names of the classes."""
        config = self.config
        names = ("pooling", "classes", "loss", "label_separator")
        return {"classifier": {name: getattr(config, name) for name in names}}

    @torch.no_grad()
    def panels(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """`views`: augmented images | as they are mixed, dropped patches gray; and features of the
        former.
        """
        images = self.pixel_scale(batch.images[:_SHOWN])
        everything = mix_images(self.pixel_scale(batch.images), batch.shares, batch.boxes)
        seen = everything[:_SHOWN]
        if self.config.num_dropped(self.backbone.config):
            seen = blank_patches(seen, batch.hidden[:_SHOWN], self.backbone.config.stride)
        columns = [self.pixel_scale.back(each) for each in (images, seen)]
        panels = feature_panels(self.exported_backbone, self.pixel_scale, images)
        return {"views": rows_of(columns), **panels}


def mix_images(images: Tensor, shares: Tensor, boxes: Tensor) -> Tensor:
    """Each image mixed with the one at the mirrored place of its micro-batch.

    Args:
        images: (B, 3, H, W).
        shares: (B,) of the image itself, used where the box is empty (mixup).
        boxes: (B, 4) int64 (top, bottom, left, right): where it is not, the box is taken from the
            other image (CutMix).
    """
    others = images.flip(0)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = boxes.unsqueeze(-1).unbind(1)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    inside = (inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)).unsqueeze(1)
    is_cut = (bottom > top).view(-1, 1, 1, 1)
    share = torch.where(is_cut, (~inside).to(images.dtype), shares.view(-1, 1, 1, 1))
    return share * images + (1 - share) * others
