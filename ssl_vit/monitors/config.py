"""Configuration of monitoring."""

from typing import ClassVar

from pydantic import Field

from ssl_vit.config import Config

# Enough for a quarter of them to be a test set.
FEWEST_PROBED = 20


class MonitorConfig(Config):
    """How a run checks what it learns. None of this reaches the objective: losses are the same with
    and without it.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "labelled": "labeled",
        "labelled_every_steps": "labeled_every_steps",
        "labelled_images": "labeled_images",
    }

    every_steps: int = Field(default=20, ge=1)
    """Updates between two checks of the features for collapse: their spread, RankMe and α-ReQ."""

    buffer: int = Field(default=512, ge=16, le=2**24)
    """Number of latest feature vectors that are checked, taken from the first process over as many
    updates as needed. RankMe is at most this and at most the backbone's width.
    """

    labeled: str = ""
    """Folder or URL of labeled shards on which a k-NN and a linear probe run during training;
    empty: none.
    """

    labeled_every_steps: int = Field(default=500, ge=1)
    """Updates between two of these probes."""

    labeled_images: int = Field(default=2_000, ge=FEWEST_PROBED, le=2**24)
    """Largest number of labeled images used, the same share of every class; a quarter of them is
    the test set.
    """
