"""What can be said about monitoring."""

from typing import ClassVar

from pydantic import Field

from ssl_vit.config import Config

# Of which a quarter can be a test set.
FEWEST_PROBED = 20


class MonitorConfig(Config):
    """How a run looks at what it learns. Nothing of it reaches the objective: losses are the same
    with and without.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "labelled": "labeled",
        "labelled_every_steps": "labeled_every_steps",
        "labelled_images": "labeled_images",
    }

    every_steps: int = Field(default=20, ge=1)
    """Updates between two looks at the features for collapse: their spread, RankMe, α-ReQ."""

    buffer: int = Field(default=512, ge=16, le=2**24)
    """Latest feature vectors looked at, of the first process, from as many updates as that takes;
    RankMe can at most be this, and at most the backbone's width.
    """

    labeled: str = ""
    """Shards with labels, a folder or URL: k-NN and a linear probe on them while the run goes on;
    empty: none.
    """

    labeled_every_steps: int = Field(default=500, ge=1)
    """Updates between two such probes."""

    labeled_images: int = Field(default=2_000, ge=FEWEST_PROBED, le=2**24)
    """At most so many labeled images, the same share of every class; a quarter of them is the test
    set.
    """
