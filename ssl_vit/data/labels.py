"""The images of a shard set that have a label. Training never looks here."""

import numpy as np

from ssl_vit.data.index_file import NO_LABEL
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError


def labelled_numbers(shards: ShardSet) -> np.ndarray:
    """(N,) sample numbers that have a label, in index order."""
    return np.flatnonzero(shards.labels != NO_LABEL)


def check_labels(shards: ShardSet, least: int) -> None:
    """Refuse a set whose labels cannot be used.

    Args:
        shards: The set.
        least: Labelled images that are needed.

    Raises:
        UserError: No image has a label, too few have, or a label is outside of the classes.
    """
    labels = shards.labels[labelled_numbers(shards)]
    if not len(labels) or not shards.classes:
        raise UserError(
            f"no image of {shards.source} has a label",
            "pack a folder with one sub-folder a class:  ssl-vit shards pack IMAGES SHARDS",
        )
    if len(labels) < least:
        raise UserError(
            f"{shards.source} has {len(labels)} labelled images, {least} are needed",
            "give a larger set",
        )
    if labels.min() < 0 or labels.max() >= len(shards.classes):
        raise UserError(
            f"{shards.source} has a label outside its {len(shards.classes)} classes",
            f"pack the images again into {shards.source}",
        )
