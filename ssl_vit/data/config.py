"""Configuration of the data."""

from typing import Literal

from pydantic import Field, model_validator

from ssl_vit.config import Config
from ssl_vit.data.values import ValueRange

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SYNTHETIC_SAMPLES = 1_281_167
"""Samples of `data.source=synthetic`: as in ImageNet-1k, so that schedules have their usual length.
"""


BUFFERS_IN_USE = 2
"""Micro-batches that a data worker keeps beyond those it prepares: the one that the rank works on,
and the one before."""

# The next sample of a set that is hardly ever drawn would be searched for over millions of steps.
_LEAST_SHARE = 1e-6


class DataConfig(Config):
    """The samples, their order, and the scaling of their pixels."""

    source: Literal["shards", "synthetic"] = "shards"
    """`synthetic`: the same few generated images over and over, to measure the model without the
    loader.
    """

    shards: str | tuple[str, ...] = ""
    """Folder of shards, a path or URL, or some of its shards, as `…/shard-{000000..000007}.tar`; a
    list of several. Required.
    """

    weights: tuple[float, ...] = ()
    """Relative share of each set of the list in every step; without weights the sets form one set,
    and every image is used equally often.
    """

    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Images that cannot be decoded are replaced and listed; the run stops when they exceed this
    share of the images so far (of at least the first 1,000).
    """

    allow_shell_urls: bool = False
    """Whether `pipe:` URLs in an index may run shell commands."""

    global_batch_size: int = Field(default=256, ge=1, le=2**24)
    """Images per step, over all processes and micro-batches."""

    lanes: int = Field(default=64, ge=1, le=2**20)
    """Independent streams that an epoch is divided into; must divide the global batch size and be
    divisible by the number of processes.
    """

    shuffle_block: int = Field(default=8_192, ge=1)
    """Neighboring samples of a lane that are shuffled together; a process reads from about its
    number of lanes times this many at a time.
    """

    value_range: Literal["auto"] | tuple[float, float] = "auto"
    """Stored values that become black and white in images of more than 8 bits. `auto`: those of
    `resume_from`, else of the index; a run keeps the range it started with.
    """

    no_data: Literal["auto"] | float = "auto"
    """Stored value of pixels without data, in images of more than 8 bits; they become black.
    `auto`: as for `value_range`.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean per channel, subtracted from pixels in [0, 1]."""

    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation per channel, by which pixels are divided."""

    @property
    def values(self) -> ValueRange | None:
        """How values of more than 8 bits are shown; None with `value_range=auto`."""
        if self.value_range == "auto":
            return None
        low, high = self.value_range
        return ValueRange(low, high, None if self.no_data == "auto" else self.no_data)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sets of `shards` as a list."""
        listed = (self.shards,) if isinstance(self.shards, str) else self.shards
        return tuple(source for source in listed if source)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> "DataConfig":
        if self.value_range != "auto" and not self.value_range[0] < self.value_range[1]:
            low, high = self.value_range
            raise ValueError(
                f"data.value_range=[{low:g},{high:g}] is empty; give the value of black, then that "
                "of white"
            )
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> "DataConfig":
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"data.weights has {len(self.weights)} numbers for {len(self.sources)} sets in "
                "data.shards; give one for each, or none"
            )
        if self.weights and min(self.weights) <= 0:
            raise ValueError(
                f"data.weights={list(self.weights)} must be positive; leave the set out instead"
            )
        if self.weights and min(self.weights) < _LEAST_SHARE * sum(self.weights):
            raise ValueError(
                f"data.weights={list(self.weights)} gives a set less than a millionth; leave that "
                "set out instead"
            )
        return self

    @model_validator(mode="after")
    def _lanes_fit(self) -> "DataConfig":
        if self.global_batch_size % self.lanes:
            fits = [n for n in range(self.lanes, 0, -1) if self.global_batch_size % n == 0]
            raise ValueError(
                f"data.lanes={self.lanes} does not divide data.global_batch_size="
                f"{self.global_batch_size}; lanes that do: {', '.join(map(str, fits[:4]))}"
            )
        if min(self.pixel_std) <= 0:
            raise ValueError(
                f"data.pixel_std={list(self.pixel_std)} must be positive; "
                f"ImageNet's is {list(IMAGENET_STD)}"
            )
        return self
