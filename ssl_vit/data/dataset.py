"""From samples to micro-batches: each is read, decoded once, and cropped into its batch.

An image that cannot be decoded does not end a training run. It is replaced by the next image of
its shard that can be (the first one following the last), with the crops that its own randomness
draws, and is reported. The replacement depends on the shards alone, so a resumed run uses the same
one. An evaluation, in which every image counts, stops with an error.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.batches import BadSample, Loaded
from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.decode import Picture
from ssl_vit.data.order import SampleRandomness, SampleRef
from ssl_vit.data.pixel_digest import DIGEST_BYTES, digest_pixels
from ssl_vit.data.render import render
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.values import ValueRange
from ssl_vit.data.views import Sample, Views
from ssl_vit.errors import UserError

# V crops of one size, B images, h × w pixels of a crop.


class Canvases:
    """The pixels of a micro-batch, filled image by image.

    Args:
        crop_sizes: (V, (h, w)) for every size.
        num_images: B.
        memory: Flat uint8 tensor of :func:`canvas_bytes` bytes.
    """

    def __init__(
        self, crop_sizes: Sequence[tuple[int, tuple[int, int]]], num_images: int, memory: Tensor
    ) -> None:
        self._groups: list[Tensor] = []
        self._crops: list[Sequence[Tensor]] = []
        begin = 0
        for count, size in crop_sizes:
            end = begin + canvas_bytes([(count, size)], num_images)
            group = memory[begin:end].view(count, num_images, *size, 3)
            self._groups.append(group)
            self._crops += [crop.unbind() for crop in group]
            begin = end

    def of_image(self, place: int) -> list[Tensor]:
        """For each crop of one image (h, w, 3), to be filled."""
        return [images[place] for images in self._crops]

    def crops(self) -> list[Tensor]:
        """For every size (V, B, 3, h, w), as ``Views.collate`` takes them."""
        return [group.permute(0, 1, 4, 2, 3) for group in self._groups]


def canvas_bytes(crop_sizes: Sequence[tuple[int, tuple[int, int]]], num_images: int) -> int:
    """Bytes of the pixels of a micro-batch."""
    return sum(count * num_images * height * width * 3 for count, (height, width) in crop_sizes)


class BatchMaker(Protocol):
    """Makes a micro-batch; runs in data workers."""

    def num_bytes(self, num_images: int) -> int:
        """Bytes of the pixels of a micro-batch."""
        ...

    def make(self, items: Any, memory: Tensor) -> Loaded:
        """The micro-batch of these samples.

        Args:
            items: The samples, in the form this maker takes.
            memory: Flat uint8 tensor of ``num_bytes`` for the pixels.
        """
        ...


class TrainingBatches:
    """Samples as an objective sees them, each addressed by (number, epoch) with its own randomness.

    Args:
        shards: The samples.
        views: The objective's views.
        seed: The run's seed.
        values: How values of more than 8 bits are shown; None: such an image is a bad sample.
    """

    def __init__(
        self, shards: ShardSet, views: Views, seed: int, values: ValueRange | None = None
    ) -> None:
        self.shards, self.views, self.seed, self.values = shards, views, seed, values
        self.rng = SampleRandomness(seed)

    def num_bytes(self, num_images: int) -> int:
        """See :class:`BatchMaker`."""
        return canvas_bytes(self.views.crop_sizes, num_images)

    def make(self, items: Sequence[SampleRef], memory: Tensor) -> Loaded:
        """See :class:`BatchMaker`."""
        canvases = Canvases(self.views.crop_sizes, len(items), memory)
        draws: list[Any] = []
        samples: list[Sample] = []
        bad: list[BadSample] = []
        try:
            for place, ref in enumerate(items):
                number, draw, problem = self._make_one(ref, canvases.of_image(place))
                draws.append(draw)
                samples.append(Sample(number, int(self.shards.record(number)["label"])))
                if problem:
                    key, shard = self.shards.key(ref.number), self.shards.location_of(ref.number)
                    bad.append(BadSample(ref.number, ref.epoch, key, shard, problem, number))
        except UserError as error:
            return Loaded(None, failure=error)
        return Loaded(self.views.collate(canvases.crops(), draws, samples), tuple(bad))

    def _make_one(self, ref: SampleRef, into: Sequence[Tensor]) -> tuple[int, Any, str]:
        """Make one sample's crops; (number that was used, its augmentation, what was wrong with
        ``ref``'s own image).
        """
        problem = ""
        for number in itself_then_neighbors(self.shards, ref.number):
            data = self.shards.read(number)
            try:
                picture = Picture(data, self.values)
                draw = self.views.draw(picture.height, picture.width, self.rng.of(ref))
                render(picture, draw.crops, into)
                return number, draw, problem
            except ValueError as error:
                problem = problem or str(error)
        raise UserError(
            f"no image in shard {self.shards.location_of(ref.number)} can be decoded: {problem}",
            "ssl-vit shards check SHARDS  lists the damage; pack the images again",
        )


class CenterBatch(NamedTuple):
    """Images for an evaluation."""

    images: Tensor
    """(B, 3, h, w) uint8."""
    digests: Tensor
    """(B, 16) uint8 digests of the crops, see ``data.pixel_digest``."""


class EvaluationBatches:
    """The center crop of each image, by sample number.

    Args:
        shards: The samples.
        crop: The center crop.
        values: How values of more than 8 bits are shown; None: such an image is refused.
    """

    def __init__(
        self, shards: ShardSet, crop: CenterCrop, values: ValueRange | None = None
    ) -> None:
        self.shards, self.crop, self.values = shards, crop, values

    def num_bytes(self, num_images: int) -> int:
        """See :class:`BatchMaker`."""
        return canvas_bytes([(1, self.crop.size)], num_images)

    def make(self, items: Sequence[int], memory: Tensor) -> Loaded:
        """See :class:`BatchMaker`."""
        canvases = Canvases([(1, self.crop.size)], len(items), memory)
        digests = b""
        try:
            for place, number in enumerate(items):
                into = canvases.of_image(place)
                self._make_one(number, into)
                digests += digest_pixels(into[0].numpy())
        except UserError as error:
            return Loaded(None, failure=error)
        rows = np.frombuffer(digests, np.uint8).reshape(len(items), DIGEST_BYTES)
        return Loaded(CenterBatch(canvases.crops()[0][0], torch.from_numpy(rows.copy())))

    def _make_one(self, number: int, into: Sequence[Tensor]) -> None:
        data = self.shards.read(number)
        try:
            picture = Picture(data, self.values)
            render(picture, [self.crop(picture.height, picture.width)], into)
        except ValueError as error:
            raise UserError(
                f"sample {self.shards.key(number)} in shard {self.shards.location_of(number)} "
                f"cannot be decoded: {error}",
                f"ssl-vit shards check {self.shards.source}  lists every such image; "
                "remove them and pack again",
            ) from None


def itself_then_neighbors(shards: ShardSet, number: int) -> Iterator[int]:
    """A sample and all others of its shard: those after it, then the shard's first to its own."""
    shard = shards.shard_of(number)
    start, end = int(shards.starts[shard]), int(shards.starts[shard + 1])
    yield from range(number, end)
    yield from range(start, number)
