"""Synthetic samples, to measure a model without its loader: a few, over and over.

The number of a sample alone decides which of them is used for it, and numbers are those of the
usual order: logs look as usual, and losses do not depend on micro-batches or ranks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.batches import Batches, Loaded
from ssl_vit.data.dataset import Canvases, canvas_bytes
from ssl_vit.data.decode import Picture
from ssl_vit.data.order import SampleRandomness, SampleRef
from ssl_vit.data.render import render
from ssl_vit.data.views import Sample, Views

# One picture of noise in ImageNet's usual size, and the number of samples made from it.
_HEIGHT, _WIDTH = 375, 500
_MADE = 64


class SyntheticBatches(Batches):
    """Micro-batches like those of `LoadedBatches`, without reading anything.

    Args:
        views: The objective's views.
        refs: The samples of every micro-batch.
        seed: The run's seed.
    """

    def __init__(self, views: Views, refs: Iterator[list[SampleRef]], seed: int) -> None:
        self.views, self.refs, self.seed = views, refs, seed
        self._crops: list[Tensor] = []
        self._draws: list[Any] = []

    def __iter__(self) -> "SyntheticBatches":
        return self

    def __next__(self) -> Loaded:
        if not self._draws:
            self._make()
        numbers = [ref.number for ref in next(self.refs)]
        places = [number % _MADE for number in numbers]
        crops = [group[:, places] for group in self._crops]
        draws = [self._draws[place] for place in places]
        samples = [Sample(number, -1) for number in numbers]
        return Loaded(self.views.collate(crops, draws, samples))

    def finish(self) -> None:
        """Do nothing: no shard was read."""

    def close(self) -> None:
        """Do nothing: no process was started."""

    def _make(self) -> None:
        noise = np.random.default_rng(self.seed).integers(0, 256, (_HEIGHT, _WIDTH, 3), np.uint8)
        sizes = self.views.crop_sizes
        memory = torch.empty(canvas_bytes(sizes, _MADE), dtype=torch.uint8)
        canvases, rng = Canvases(sizes, _MADE, memory), SampleRandomness(self.seed)
        picture = Picture.of_pixels(noise)
        for place in range(_MADE):
            draw = self.views.draw(_HEIGHT, _WIDTH, rng.of(SampleRef(place, 0)))
            render(picture, draw.crops, canvases.of_image(place))
            self._draws.append(draw)
        self._crops = canvases.crops()
