"""A random sample of the patches of a step that does not depend on how they are grouped.

Every patch gets a pseudorandom key from its image's key and its place; the sample is the rows with
the smallest keys. So micro-batches and ranks can each keep their own smallest rows, and what they
keep together is the same as if one process had seen all of them.
"""

import torch
from torch import Tensor

from ssl_vit.objectives.ranks import num_ranks, rows_of_ranks

# B images, N patches, R rows, C dimensions.

# splitmix64 (Steele et al. 2014), as signed 64-bit numbers.
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def row_keys(keys: Tensor, num_patches: int) -> Tensor:
    """Pseudorandom keys of all patches of a micro-batch.

    Args:
        keys: (B,) int64, random and different for every image.
        num_patches: N.

    Returns:
        (B × N,) int64, uniform over all values.
    """
    places = torch.arange(num_patches, device=keys.device)
    return _mixed(_mixed(keys)[:, None] + places).flatten()


def _mixed(values: Tensor) -> Tensor:
    values = values * _GOLDEN + _GOLDEN
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left, as of unsigned numbers."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class RowSample:
    """The rows with the smallest keys among all that were added.

    Args:
        count: R, the number of rows to keep.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._keys: Tensor | None = None
        self._rows: Tensor | None = None

    def add(self, keys: Tensor, rows: Tensor) -> None:
        """Add rows.

        Args:
            keys: (n,) int64, of :func:`row_keys`.
            rows: (n, C).
        """
        if self._keys is not None and self._rows is not None:
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self._rows, rows])
        keys, kept = keys.topk(min(self.count, len(keys)), largest=False)
        self._keys, self._rows = keys, rows[kept]

    def over_ranks(self, count: int) -> Tensor:
        """(R, C) the ``count`` rows with the smallest keys over all ranks, in the order of their
        keys; all ranks call it, having added equally many rows.
        """
        assert self._keys is not None
        assert self._rows is not None
        # Keys are uniform, so practically no rank has more than twice its share of the smallest; 64
        # more cover small counts.
        share = count if num_ranks() == 1 else 2 * count // num_ranks() + 64
        keys, kept = self._keys.topk(min(share, len(self._keys)), largest=False)
        keys, rows = rows_of_ranks(keys), rows_of_ranks(self._rows[kept])
        _, kept = keys.topk(min(count, len(keys)), largest=False)
        return rows[kept]
