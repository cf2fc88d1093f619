"""What every objective's configuration answers, so that no other room asks which objective it is.

A method is a folder: its config (this contract, no torch), its views, its objective. The plan, the
smoke twins, the alarms and the messages of a run read the facts below; only `build.py` names the
methods.
"""

from abc import abstractmethod
from typing import Any, Literal

from ssl_vit.config import Config
from ssl_vit.models.config import HIDES, BackboneConfig, Hides, backbones_that_hide

Symptom = Literal["one answer", "no answer", "one direction", "few dimensions"]
"""What a collapse looks like, see `monitors/collapse.py`."""


class MethodConfig(Config):
    """Configuration of an objective."""

    name: Any
    """Which objective this is; each one's own literal."""

    @property
    @abstractmethod
    def needs(self) -> Hides:
        """What the backbone must be able to do with hidden patches."""

    @abstractmethod
    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """(how many, (height, width) in pixels) of every size of view that an image is seen as."""

    def crop_pixels(self, backbone: BackboneConfig) -> int:
        """Pixels of all views of an image together, each of three colors."""
        return sum(count * height * width for count, (height, width) in self.crops(backbone))

    def check(self, backbone: BackboneConfig) -> None:
        """Refuse a backbone that this objective cannot train; the only check between the two.

        Raises:
            ValueError: "what is wrong; what to do".
        """
        if HIDES.index(backbone.hides) < HIDES.index(self.needs):
            able = ", ".join(f"backbone.name={name}" for name in backbones_that_hide(self.needs))
            verb = {"fill": "put a token in place of", "drop": "leave out"}[self.needs]
            raise ValueError(
                f"objective.name={self.name} needs a backbone that can {verb} hidden patches, and "
                f"backbone.name={backbone.name} cannot; choose {able}"
            )

    def check_micro_batch(self, num_images: int) -> None:
        """Refuse a micro-batch of too few images.

        Raises:
            ValueError: "what is wrong; what to do".
        """

    def grouped(self, micro_batch_size: int, world_size: int) -> dict[str, object]:
        """What of the result depends on how images are grouped: a name for people → the group.

        Args:
            micro_batch_size: Images in a forward pass of one process.
            world_size: Processes.
        """
        return {}

    @property
    def num_codes(self) -> int:
        """Prototypes or codebook entries that images are assigned to; 0: none."""
        return 0

    def cures(self, symptom: Symptom) -> str:
        """The two or three settings that usually cure a collapse."""
        return (
            "a lower optimizer.base_learning_rate, a longer schedule.warmup, optimizer.clip_norm=1"
        )

    @abstractmethod
    def shrunk(self, backbone: BackboneConfig) -> dict[str, Any]:
        """Settings with which a smoke run takes seconds, every switch as it is."""
