"""The classes of a run's data, filled into the config of an objective that learns from labels.

No torch here.
"""

from collections.abc import Sequence

import numpy as np

from ssl_vit.data.labels import check_labels
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError
from ssl_vit.run.config import RunConfig

_NAMED = 12  # classes in a message


def settle_classes(config: RunConfig, shards: ShardSet | None) -> tuple[RunConfig, tuple[str, ...]]:
    """The config with the names of the classes and the number of images of each, and messages.

    Args:
        shards: The training data; None if it is synthetic.

    Raises:
        UserError: Images have no label, or the objective cannot learn these classes.
    """
    if not config.objective.needs_labels:
        return config, ()
    if shards is None:
        raise UserError(
            f"objective.name={config.objective.name} needs labels, and data.source=synthetic has "
            "none",
            "add  data.shards=FOLDER  of labeled images",
        )
    check_labels(shards, least=1)
    labels = shards.labels
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        remedy = (
            "pack the labeled images alone:  ssl-vit shards pack IMAGES SHARDS  with one "
            "sub-folder for each class"
        )
        if mark := config.objective.no_class_label:
            remedy = f"give images of no class the label {mark} in the manifest, and pack again"
        raise UserError(
            f"{unlabeled:,} of {len(labels):,} images of {shards.source} have no label", remedy
        )
    counts = np.bincount(labels, minlength=len(shards.classes)).tolist()
    try:
        objective = config.objective.fit_to_classes(shards.classes, tuple(counts))
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise UserError(problem, remedy) from None
    notes = _notes(*objective.class_sizes())
    if not config.resume_from:
        notes.append("the backbone starts from random weights; resume_from=EXPORT gives it others")
    return config.model_copy(update={"objective": objective}), tuple(notes)


def _notes(classes: tuple[str, ...], counts: Sequence[int]) -> list[str]:
    """What a person should know of the classes: sizes, imbalance, classes without images."""
    named = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=True)]
    more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    notes = [f"{len(classes)} classes: {', '.join(named[:_NAMED])}{more}"]
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        notes.append(f"warning: no training image of {', '.join(empty[:_NAMED])}")
    largest, smallest = max(counts), min(count for count in counts if count)
    if largest >= 5 * smallest:
        notes.append(
            f"the largest class has {largest / smallest:.1f} times the images of the smallest: "
            "look at balanced accuracy; objective.class_weights=auto lets all count the same"
        )
    return notes
