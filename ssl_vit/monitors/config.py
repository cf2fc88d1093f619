"""Configuration of monitoring."""

from typing import ClassVar

from pydantic import Field

from ssl_vit.config import Config

# The fewest labeled images of which a quarter can be a test set.
FEWEST_PROBED = 20


class MonitorConfig(Config):
    """Monitoring of what a run learns. It never reaches the objective: losses are the same with and
    without it.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "labelled": "labeled",
        "labelled_every_steps": "labeled_every_steps",
        "labelled_images": "labeled_images",
    }

    every_steps: int = Field(default=20, ge=1)
    """Steps between two checks of the features for collapse: their spread, RankMe, α-ReQ."""

    buffer: int = Field(default=512, ge=16, le=2**24)
    """Number of latest feature vectors of the first process that are checked, over as many steps as
    that takes; RankMe is at most this number and at most the backbone's width.
    """

    labeled: str = ""
    """Shards with labels, a folder or URL, for a k-NN and a linear probe during the run; empty:
    none.
    """

    labeled_every_steps: int = Field(default=500, ge=1)
    """Steps between two such probes."""

    labeled_images: int = Field(default=2_000, ge=FEWEST_PROBED, le=2**24)
    """Most labeled images used for probes, the same share of every class; a quarter of them is the
    test set.
    """
