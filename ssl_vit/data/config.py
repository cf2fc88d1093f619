"""Configuration of the data."""

from typing import Literal

from pydantic import Field, model_validator

from ssl_vit.config import Config
from ssl_vit.data.values import ValueRange

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SYNTHETIC_SAMPLES = 1_281_167
"""Samples of `data.source=synthetic`: ImageNet-1k's, so that schedules have their usual length."""


BUFFERS_IN_USE = 2
"""Micro-batches that a data worker keeps beyond those it prepares: the one that the rank works on,
and the one before."""

# A set that is hardly ever drawn would have to be looked for over millions of updates.
_LEAST_SHARE = 1e-6


class DataConfig(Config):
    """Which samples are used, in which order, and how their pixels are scaled."""

    source: Literal["shards", "synthetic"] = "shards"
    """Where images come from. `synthetic`: one generated micro-batch, repeated, to measure the
    model without the loader.
    """

    shards: str | tuple[str, ...] = ""
    """Folder or URL of the shards, or some of its shards as `…/shard-{000000..000007}.tar`; a list
    for several sets. Required.
    """

    weights: tuple[float, ...] = ()
    """Share of each listed set in every update, in any unit. Without weights the sets are treated
    as one, and every image is seen equally often.
    """

    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of images that may fail to decode before the run stops, counted over the images
    seen (at least the first 1,000). Until then, broken images are replaced and listed.
    """

    allow_shell_urls: bool = False
    """Whether `pipe:` URLs in an index may run shell commands."""

    global_batch_size: int = Field(default=256, ge=1, le=2**24)
    """Images per update, over all processes and micro-batches."""

    lanes: int = Field(default=64, ge=1, le=2**20)
    """Number of independent streams that an epoch is cut into; divides the global batch size and is
    a multiple of the number of processes.
    """

    shuffle_block: int = Field(default=8_192, ge=1)
    """Number of neighboring samples in a lane that are shuffled together; a process works on about
    this many times its number of lanes at a time.
    """

    value_range: Literal["auto"] | tuple[float, float] = "auto"
    """Stored values shown as black and white in images of more than 8 bits. `auto`: those of
    `resume_from`, otherwise of the index; resumed runs keep the first choice.
    """

    no_data: Literal["auto"] | float = "auto"
    """Stored value of pixels that were not measured, in images of more than 8 bits; shown as black.
    `auto`: chosen like `value_range`.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean per channel, subtracted from pixels in [0, 1]."""

    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation per channel, by which pixels are divided."""

    @property
    def values(self) -> ValueRange | None:
        """How values of more than 8 bits are shown; None where nothing says so."""
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
                f"data.value_range=[{low:g},{high:g}] is empty; give the value that is black, then "
                "the one that is white"
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
                f"data.weights={list(self.weights)}: a share below one in a million is none; "
                "leave the set out instead"
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
