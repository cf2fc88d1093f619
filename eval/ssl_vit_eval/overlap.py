"""Test images that are also in train, by a digest of the evaluated pixels. No torch here.

The crops that the encoders get are compared. This finds the same file under two names, and images
that differ only outside the crop, but not a copy that was compressed again, resized or turned.
"""

from dataclasses import dataclass

import numpy as np

from ssl_vit.data.pixel_digest import is_single_color


@dataclass(frozen=True, eq=False)
class Overlap:
    """The test images that are also in train."""

    repeated: np.ndarray
    """(M,) bool, in the order of the test images."""
    num_single_color: int
    """Number of those with a single color."""
    num_other_class: int
    """Number of those that train has under other classes only."""

    @property
    def count(self) -> int:
        """Number of test images that are also in train."""
        return int(self.repeated.sum())

    @property
    def share(self) -> float:
        """Their share of all test images, in [0, 1]."""
        return float(self.repeated.mean())


def find_overlap(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Overlap:
    """Compare the digests of both sets.

    Args:
        train, test: (N, 16) and (M, 16) uint8, see ``data.pixel_digest``.
        train_labels, test_labels: (N,) and (M,) class numbers of the evaluation.
    """
    wanted = {row.tobytes() for row in test}
    classes: dict[bytes, set[int]] = {}
    for row, label in zip(train, train_labels.tolist(), strict=True):
        if (digest := row.tobytes()) in wanted:
            classes.setdefault(digest, set()).add(label)
    found = [(row.tobytes(), label) for row, label in zip(test, test_labels.tolist(), strict=True)]
    return Overlap(
        np.array([digest in classes for digest, _ in found]),
        sum(digest in classes and is_single_color(digest) for digest, _ in found),
        sum(digest in classes and label not in classes[digest] for digest, label in found),
    )
