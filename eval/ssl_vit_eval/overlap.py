"""Test images that are also in train, by a digest of the pixels that were evaluated. No torch.

What is compared is the crop as the encoders saw it. So the same file under two names is found, and
so are images that differ only outside the crop; a copy that was compressed again, resized or turned
is not.
"""

from dataclasses import dataclass

import numpy as np

from ssl_vit.data.pixel_digest import is_single_color


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which test images are also in train."""

    repeated: np.ndarray
    """(M,) bool, in the order of the test images."""
    num_single_color: int
    """Of those, the ones of one color throughout."""
    num_other_class: int
    """Of those, the ones that train has under other classes only."""

    @property
    def count(self) -> int:
        """Test images that are also in train."""
        return int(self.repeated.sum())

    @property
    def share(self) -> float:
        """Of all test images, in [0, 1]."""
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
