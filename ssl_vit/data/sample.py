"""Which image a crop is of, for the views of an objective."""

from typing import NamedTuple


class Sample(NamedTuple):
    """One image of a micro-batch."""

    number: int
    """In the shard set."""
    label: int
    """Class number, −1 where it has none; self-supervised objectives ignore it."""
