"""What can be said about the data."""

from pydantic import Field, model_validator

from ssl_vit.config import Config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataConfig(Config):
    """Which samples, in which order, and how their pixels are scaled."""

    shards: str = ""
    """Folder of shards, as `ssl-vit shards pack` writes it. Required."""

    global_batch_size: int = Field(default=256, ge=1)
    """Images an update, over all processes and micro-batches."""

    lanes: int = Field(default=64, ge=1)
    """Independent streams an epoch is cut into; divides the global batch, and the number of
    processes divides it.
    """

    shuffle_block: int = Field(default=8_192, ge=1)
    """Neighbouring samples of a lane that are shuffled together; a process touches about its number
    of lanes times this many at a time.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per-channel mean subtracted from pixels in [0, 1]."""

    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Per-channel standard deviation pixels are divided by."""

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
