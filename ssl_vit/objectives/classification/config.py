"""Configuration of classification: fine-tuning a backbone with labels, or training one from
scratch.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ssl_vit.data.class_names import classes_in, membership
from ssl_vit.models.config import BackboneConfig, Hides, Pooling
from ssl_vit.objectives.method import MethodConfig, Symptom, Validating
from ssl_vit.objectives.one_crop.config import num_hidden_patches

_USUAL_CLASSES = 1000  # of a run that is only planned
_MOST_FITTED = 20_000  # views; more change a head little that is trained next


class ClassificationConfig(MethodConfig):
    """Supervised training: the whole network learns the labels of the images. Fine-tuning is the
    same from a pre-trained backbone.
    """

    name: Literal["classification"] = "classification"
    """Which objective this section configures."""

    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the logits, filled in by the run from the data."""

    class_counts: tuple[int, ...] = ()
    """Number of images of each class in the training data, those held out included; filled in by
    the run.
    """

    label_separator: str = Field(default="", max_length=8)
    """Multi-label: what stands between the classes of an image that has several, `;` in
    `dent;scratch`. Each class is then a binary decision (`loss=binary`); an image of no class has
    the separator alone as its label. Validation ranks weights by mean average precision, and holds
    out images at random. Empty: a label is one class.
    """

    label_sets: str = ""
    """With a `label_separator`: for each label of the training data the numbers of its classes, by
    commas, and labels by semicolons (a list would have a line for each); filled in by the run.
    """

    num_images: int = 0
    """Number of training images, those held out included; filled in by the run."""

    pooling: Pooling = "mean"
    """What the linear layer sees. `cls`: the class token. `mean`: the mean of the patches before
    the final norm, with a norm of its own (MAE, BEiT). `map`: one query's attention over the
    patches (Zhai et al. 2021, arXiv 2106.04560, appendix A).
    """

    head: Literal["small", "probe"] = "small"
    """What the linear layer starts from. `small`: small random numbers. `probe`: a linear probe of
    the frozen backbone, fitted to at most 20,000 views of training images before the first step, so
    that the first gradients do not distort good features (Kumar et al. 2022, arXiv 2202.10054).
    Needs a low rate: 1e-4 or less with AdamW on small networks, and `backbone.drop_path=0` there.
    """

    layer_decay: float = Field(default=0.65, gt=0, le=1)
    """Layer-wise learning rate decay: a block's rate divided by that of the block above it."""

    ema_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Share that one step keeps of a moving average of the weights, which is then what is evaluated
    and exported; 0: no average.
    """

    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    """`binary`: each class is a yes or no (DeiT III); both classes of a mixed image are a yes."""

    class_weights: Literal["none", "auto"] | tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = (
        "none"
    )
    """Weight of each class in the loss. `auto`: images / (classes × images of the class), so that
    all classes count the same. Or one number for each class, in their order. With `loss=binary` it
    is the image that is weighted, by the classes it has a part of. With a `label_separator` a
    weight multiplies the loss of images that are of the class; `auto`: images that are not / images
    that are.
    """

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of a target that all classes get equally; not used by `binary`."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pooled features that are set to 0 before the linear layer."""

    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an image's patches that a training step leaves out, others in each step (Liu et
    al. 2022, arXiv 2208.07220). At high resolutions 0.5 makes a step about twice as fast. All
    patches are seen in evaluation. Not with relative positions.
    """

    min_crop_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest crop as a share of the image's area."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""

    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip; 0.5 suits images without a fixed orientation (microscopy,
    satellites).
    """

    augment: str = Field(
        default="rand-m9-mstd0.5-inc1",
        pattern=r"^(3a|rand(-(m|n|inc|mmax)\d+|-(mstd|p)\d+(\.\d+)?)*)?$",
    )
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in timm's notation, `3a` for DeiT III's
    three augmentations, or empty for none.
    """

    random_erasing: float = Field(default=0.25, ge=0, le=1)
    """Probability that a rectangle becomes noise (Zhong et al. 2017, arXiv 1708.04896)."""

    mixup: float = Field(default=0.8, ge=0, le=4)
    """α of mixup's Beta(α, α) (Zhang et al. 2017, arXiv 1710.09412); 0: no mixup. Each image is
    mixed with one at the mirrored place of its micro-batch.
    """

    cutmix: float = Field(default=1.0, ge=0, le=4)
    """α of CutMix's Beta(α, α) (Yun et al. 2019, arXiv 1905.04899); 0: no CutMix. With both, each
    image gets one of the two, equally often.
    """

    validation: str = ""
    """Shards of labeled images for validation. Empty: a part of the training images is held out."""

    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class of the training images that is held out for validation, if there are no
    `validation` shards; 0: no validation.
    """

    validate_every_steps: int = Field(default=200, ge=1)
    """Optimizer steps between two validations. The weights with the highest balanced accuracy (and
    among equals the lowest loss) are the run's last export.
    """

    patience: int = Field(default=0, ge=0)
    """Number of validations without a better one after which the run stops; 0: never."""

    @model_validator(mode="after")
    def _settings_act(self) -> "ClassificationConfig":
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError("objective.class_weights are all 0; give the classes weights above 0")
        if self.label_separator and self.loss != "binary":
            raise ValueError(
                "objective.label_separator needs a binary decision for each class; add "
                "objective.loss=binary"
            )
        if self.head == "probe" and self.pooling == "map":
            raise ValueError(
                "objective.head=probe has nothing to fit with objective.pooling=map, whose "
                "attention starts from random weights; use objective.pooling=cls or mean"
            )
        if self.patience and self.validating is None:
            raise ValueError(
                f"objective.patience={self.patience} has no effect without validation; set "
                "objective.held_out=0.1, or objective.validation"
            )
        return self

    @property
    def needs(self) -> Hides:
        """Nothing is hidden, unless patches are dropped."""
        return "drop" if self.patch_dropout else "no"

    @property
    def needs_labels(self) -> bool:
        """See :class:`MethodConfig`."""
        return True

    @property
    def fits_head(self) -> int:
        """See :class:`MethodConfig`."""
        return _MOST_FITTED if self.head == "probe" else 0

    @property
    def no_class_label(self) -> str:
        """See :class:`MethodConfig`."""
        return self.label_separator

    @property
    def validating(self) -> Validating | None:
        """See :class:`MethodConfig`."""
        if not (self.validation or self.held_out):
            return None
        return Validating(self.validation, self.held_out, self.validate_every_steps, self.patience)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.classes) or _USUAL_CLASSES

    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """One view of the size of the backbone's training crop."""
        return ((1, backbone.height_width),)

    def num_dropped(self, backbone: BackboneConfig) -> int:
        """Number of patches of each image that a training step leaves out."""
        if not self.patch_dropout:
            return 0
        return num_hidden_patches(backbone.num_patches, self.patch_dropout)

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; says which setting it is."""
        if self.patch_dropout and backbone.hides != "drop":
            raise ValueError(
                f"objective.patch_dropout={self.patch_dropout:g} leaves patches out, and "
                f"{backbone.cannot_hide('drop')}"
            )

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """Mixed images, if there are any."""
        if not (self.mixup or self.cutmix):
            return {}
        return {"mixup and CutMix (within a micro-batch)": micro_batch_size}

    def unlike(self, other: MethodConfig) -> str:
        """See :class:`MethodConfig`: other classes, or another input of the head."""
        assert isinstance(other, ClassificationConfig)
        names = ("classes", "label_separator", "pooling")
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")

    def is_symptom(self, symptom: Symptom) -> bool:
        """See :class:`MethodConfig`: features of a few classes use few dimensions."""
        return symptom == "one direction"

    def check_micro_batch(self, num_images: int) -> None:
        """See :class:`MethodConfig`: an image cannot be mixed with itself."""
        if num_images < 2 and (self.mixup or self.cutmix):
            raise ValueError(
                "a micro-batch of one image has none to mix it with; use "
                "engine.micro_batch_size=2 or more, or objective.mixup=0 objective.cutmix=0"
            )

    def fit_to_classes(
        self, classes: tuple[str, ...], counts: tuple[int, ...]
    ) -> "ClassificationConfig":
        """See :class:`MethodConfig`.

        Raises:
            ValueError: There is nothing to tell apart, or the weights are those of other classes.
        """
        total, sets = sum(counts), ""
        if self.label_separator:
            if not any(self.label_separator in name for name in classes):
                raise ValueError(
                    f"objective.label_separator={self.label_separator} is in none of the labels "
                    f"({', '.join(classes[:5])}); leave it out, or give the one that is"
                )
            labels, classes = classes, classes_in(classes, self.label_separator)
            table = membership(labels, classes, self.label_separator)
            sets = ";".join(",".join(map(str, np.flatnonzero(row))) for row in table)
            counts = tuple((np.array(counts) @ table).tolist())
        if self.classes and self.classes != classes:
            raise ValueError(
                f"objective.classes is not what the data has ({', '.join(classes[:20])}); leave it "
                "out: it is filled in"
            )
        present = [name for name, count in zip(classes, counts, strict=True) if count]
        if not any(0 < count < total for count in counts):
            what = "no class"
            if present:
                what = (
                    f"{'the same classes' if present[1:] else 'one class'} ({', '.join(present)})"
                )
            raise ValueError(
                f"all training images are of {what}: there is nothing to tell apart; add images of "
                "another class"
            )
        weights = self.class_weights
        if isinstance(weights, tuple) and len(weights) != len(classes):
            raise ValueError(
                f"objective.class_weights has {len(weights)} numbers for {len(classes)} classes; "
                f"give one each, in this order: {', '.join(classes[:20])}"
            )
        found = {"classes": classes, "class_counts": counts, "label_sets": sets}
        return self.model_copy(update={**found, "num_images": total})

    def class_sizes(self) -> tuple[tuple[str, ...], Sequence[int]]:
        """See :class:`MethodConfig`."""
        return self.classes, self.class_counts

    def sets_of_labels(self) -> list[list[int]]:
        """For each label of the training data the numbers of its classes."""
        return [
            [int(each) for each in row.split(",") if each] for row in self.label_sets.split(";")
        ]

    def weights(self) -> tuple[float, ...] | None:
        """(C,) weight of each class; None: all are 1. With `auto` a class without images has 0;
        with a `label_separator` 1.
        """
        if self.class_weights == "none":
            return None
        if isinstance(self.class_weights, tuple):
            return self.class_weights
        if self.label_separator:
            every = self.num_images
            return tuple((every - count) / count if count else 1.0 for count in self.class_counts)
        total, present = sum(self.class_counts), sum(count > 0 for count in self.class_counts)
        return tuple(total / (present * count) if count else 0.0 for count in self.class_counts)

    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """See :class:`MethodConfig`."""
        return {"validate_every_steps": 5}
