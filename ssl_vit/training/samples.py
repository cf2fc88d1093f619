"""Which samples an update saw: a digest to compare runs by, and the suspects of a bad update."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_vit.data.order import hash_words, splitmix64
from ssl_vit.distributed import Processes
from ssl_vit.training.consensus import gather

_DIGEST_KEY = hash_words(102)


def digest_of(numbers: Sequence[Tensor]) -> np.uint64:
    """A digest free of order: the sum, modulo 2⁶⁴, of the samples' scrambled numbers."""
    words = splitmix64(torch.cat(list(numbers)).cpu().numpy().astype(np.uint64), _DIGEST_KEY)
    with np.errstate(over="ignore"):
        return words.sum(dtype=np.uint64)


def find_suspects(
    numbers: Sequence[Tensor], losses: Sequence[Tensor], processes: Processes
) -> tuple[int, ...]:
    """Samples of the micro-batches with a loss that is not finite, of all ranks; else all.

    Args:
        numbers: Of each micro-batch of this rank.
        losses: The same.
        processes: This rank's place.
    """
    bad = [part for part, loss in zip(numbers, losses, strict=True) if not torch.isfinite(loss)]
    found = gather((_listed(bad), _listed(numbers)), processes)
    named = [number for part, _ in found for number in part]
    return tuple(named or [number for _, part in found for number in part])


def _listed(parts: Sequence[Tensor]) -> list[int]:
    return [int(number) for part in parts for number in part]
