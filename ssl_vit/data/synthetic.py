"""Made-up samples, to measure a model without its loader: one micro-batch, over and over.

Numbers are those of the real order, so that logs look as they always do.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ssl_vit.data.augment import render
from ssl_vit.data.dataset import Canvases, Views, canvas_bytes
from ssl_vit.data.decode import Picture
from ssl_vit.data.loader import Batches
from ssl_vit.data.order import SampleRandomness, SampleRef
from ssl_vit.data.slots import Loaded

# One noisy picture of ImageNet's usual shape.
_HEIGHT, _WIDTH = 375, 500


class SyntheticBatches(Batches):
    """What `LoadedBatches` would give, without reading anything.

    Args:
        views: Of the objective.
        refs: The samples of every micro-batch.
        seed: Of the run.
    """

    def __init__(self, views: Views, refs: Iterator[list[SampleRef]], seed: int) -> None:
        self.views, self.refs, self.seed = views, refs, seed
        self._template: Any = None

    def __iter__(self) -> "SyntheticBatches":
        return self

    def __next__(self) -> Loaded:
        refs = next(self.refs)
        if self._template is None:
            self._template = self._make(refs)
        numbers = torch.tensor([ref.number for ref in refs])
        return Loaded(self._template._replace(numbers=numbers))

    def finish(self) -> None:
        """Nothing was read."""

    def close(self) -> None:
        """Nothing was opened."""

    def _make(self, refs: list[SampleRef]) -> Any:
        noise = np.random.default_rng(self.seed).integers(0, 256, (_HEIGHT, _WIDTH, 3), np.uint8)
        sizes = self.views.crop_sizes
        memory = torch.empty(canvas_bytes(sizes, len(refs)), dtype=torch.uint8)
        canvases, rng = Canvases(sizes, len(refs), memory), SampleRandomness(self.seed)
        draws = [self.views.draw(_HEIGHT, _WIDTH, rng.of(ref)) for ref in refs]
        picture = Picture.of_pixels(noise)
        for place, draw in enumerate(draws):
            render(picture, draw.crops, canvases.of_image(place))
        return self.views.collate(canvases.crops(), draws, [ref.number for ref in refs])
