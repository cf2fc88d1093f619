"""The contract of every objective's configuration, so that no other package branches on the
objective.

A method is a folder: its config (this contract, no torch), its views, its objective. The plan, the
smoke twins, the alarms and the messages of a run use the properties below; only `build.py` names
the methods.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ssl_vit.config import Config
from ssl_vit.models.config import HIDES, BackboneConfig, Hides
from ssl_vit.objectives.given import Given

Symptom = Literal[
    "one answer", "no answer", "one direction", "few dimensions", "few codes", "empty codes"
]
"""The kinds of collapse; see `monitors/collapse.py`."""


class Validating(NamedTuple):
    """How a run that learns from labels is validated."""

    shards: str
    """Labeled shards; empty: a part of the training images is held out."""
    held_out: float
    """Share of each class that is held out."""
    every_steps: int
    """Steps between two validations."""
    patience: int
    """Validations without a better one after which the run stops; 0: never."""


class MethodConfig(Config):
    """Configuration of an objective."""

    name: Any
    """Name of the objective; a literal in each subclass."""

    @property
    @abstractmethod
    def needs(self) -> Hides:
        """What the backbone must be able to do with hidden patches."""

    @abstractmethod
    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """(number of views, (height, width) in pixels) for every size of view of an image."""

    def crop_pixels(self, backbone: BackboneConfig) -> int:
        """Total number of pixels in all views of an image, each with three channels."""
        return sum(count * height * width for count, (height, width) in self.crops(backbone))

    def check(self, backbone: BackboneConfig) -> None:
        """Reject a backbone that this objective cannot train; the only check between the two.

        Raises:
            ValueError: The message is "what is wrong; what to do".
        """
        if HIDES.index(backbone.hides) < HIDES.index(self.needs):
            verb = {"fill": "put a token in place of", "drop": "leave out"}[self.needs]
            raise ValueError(
                f"objective.name={self.name} needs a backbone that can {verb} hidden patches, and "
                f"{backbone.cannot_hide(self.needs)}"
            )

    def check_micro_batch(self, num_images: int) -> None:
        """Reject a micro-batch of too few images.

        Raises:
            ValueError: The message is "what is wrong; what to do".
        """

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """The parts of the result that depend on how images are grouped: readable name → group.

        Args:
            micro_batch_size: Images per forward pass of one process.
            world_size: Number of processes.
        """
        return {}

    @property
    def num_codes(self) -> int:
        """Number of prototypes or codebook entries that images are assigned to; 0: none."""
        return 0

    @property
    def given(self) -> Given | None:
        """The file with a network that this objective reads, such as a teacher; None: none."""
        return None

    @property
    def is_backbone_given(self) -> bool:
        """Whether the run's backbone is the given network, and stays as it is."""
        return False

    def fit_to_data(
        self, backbone: BackboneConfig, num_images: int, images_per_step: int
    ) -> "MethodConfig":
        """This config with what it leaves to the data filled in.

        Raises:
            ValueError: It does not fit the data; "what is wrong; what to do".
        """
        return self

    def unlike(self, other: "MethodConfig") -> str:
        """The setting in which a run of this method differs from another of the same in such a way
        that its heads cannot continue from the other's; empty: none.
        """
        return ""

    def is_symptom(self, symptom: Symptom) -> bool:
        """Whether this would be a sign of collapse."""
        return True

    @property
    def needs_labels(self) -> bool:
        """Whether every training image must have a label."""
        return False

    @property
    def no_class_label(self) -> str:
        """The label of an image of no class; empty: every image is of one."""
        return ""

    @property
    def validating(self) -> Validating | None:
        """How a run is validated; None: not at all."""
        return None

    @property
    def fits_head(self) -> int:
        """Number of views of training images, about, to whose features the head is fitted before
        the first step; 0: it is not.
        """
        return 0

    def fit_to_classes(self, classes: tuple[str, ...], counts: tuple[int, ...]) -> "MethodConfig":
        """This config with the classes of the data filled in.

        Args:
            classes: Their names, in the order of their numbers.
            counts: Number of training images of each.

        Raises:
            ValueError: It does not fit them; "what is wrong; what to do".
        """
        return self

    def class_sizes(self) -> tuple[tuple[str, ...], Sequence[int]]:
        """Names of the classes that were filled in, and the number of training images of each."""
        return (), ()

    def cures(self, symptom: Symptom) -> str:
        """The two or three settings that usually cure a collapse."""
        return (
            "a lower optimizer.base_learning_rate, a longer schedule.warmup, optimizer.clip_norm=1"
        )

    @abstractmethod
    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """Settings with which a smoke run takes seconds, with every switch unchanged."""
