"""The contract between data workers and objectives: what an objective sees of an image."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ssl_vit.data.crops import Crop

# V crops of one size, B images, h × w pixels of a crop.


class Sample(NamedTuple):
    """One image of a micro-batch."""

    number: int
    """In the shard set."""
    label: int
    """Class number, −1 where it has none; self-supervised objectives ignore it."""


class SampledAugmentation(Protocol):
    """All that is random in one sample; an objective's own may hold more, such as a mask."""

    @property
    def crops(self) -> Sequence[Crop]:
        """As many as ``Views.crop_sizes`` says, in that order."""
        ...


class Views(Protocol):
    """What an objective sees of an image. Runs in data workers, so it must pickle."""

    @property
    def crop_sizes(self) -> Sequence[tuple[int, tuple[int, int]]]:
        """(V, (h, w)) for every size: how many crops, height and width in pixels."""
        ...

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Any:
        """A ``SampledAugmentation`` for an image of this size, random by ``rng`` alone."""
        ...

    def collate(
        self, crops: Sequence[Tensor], draws: Sequence[Any], samples: Sequence[Sample]
    ) -> Any:
        """One batch.

        Args:
            crops: For every size (V, B, 3, h, w) uint8, channels last in memory.
            draws: Of the B images.
            samples: Which images they are, with their labels.

        Returns:
            A NamedTuple of tensors, which the engine moves to the device; its ``numbers``, (B,)
            int64, are the run's record of what was seen.
        """
        ...

    def show(self, crops: Sequence[Tensor], draw: Any) -> list[Tensor]:
        """What the objective sees of one image, as pictures for a person.

        Args:
            crops: For every size (V, 3, h, w) uint8.
            draw: The image's.

        Returns:
            (3, h, w) uint8 each.
        """
        ...
