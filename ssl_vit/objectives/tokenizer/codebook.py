"""The codebook of a tokenizer: nearest neighbors by cosine, moved by averages instead of gradients.

Peng et al. 2022 (BEiT v2), arXiv 2208.06366; van den Oord et al. 2017 (VQ-VAE), arXiv 1711.00937,
appendix A.1 (the moving average). Three things are ours. The codebook moves once per optimizer
step, by sums over all micro-batches and ranks, so that losses do not depend on the size of a
micro-batch. It starts from k-means over a sample of all ranks. And codes
that are no longer used are replaced (the authors replace none; after Zeghidour et al. 2021,
SoundStream, arXiv 2107.03312).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.objectives.autocast import without_autocast
from ssl_vit.objectives.ranks import from_first_rank, sum_over_ranks
from ssl_vit.objectives.tokenizer.row_sample import RowSample, row_keys

# B images, N patches, R rows, K codes, C dimensions of a code.

# Cosines at once, 512 MB of them.
_MOST_COSINES = 2**27
_KMEANS_ITERATIONS = 10  # as in the authors' code
_KMEANS_ROWS_PER_CODE = 32


class Quantized(NamedTuple):
    """Codes of a micro-batch."""

    codes: Tensor
    """(B, N) int64 nearest codes."""
    vectors: Tensor
    """(B, N, C) float32, the vectors of these codes."""


class Codebook(nn.Module):
    """K unit vectors.

    Args:
        num_codes: K.
        dim: C.
        momentum: Share of a code, and of the moving average of its hits, that one step keeps.
        dead_below: A code is replaced when the moving average of its hits falls below this share of
            the average code's; 0: never.
        start_step: Step after which k-means places the codes.
    """

    vectors: Tensor
    moving_hits: Tensor
    last_hits: Tensor
    started: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        momentum: float = 0.99,
        dead_below: float = 0.0,
        start_step: int = 0,
    ) -> None:
        super().__init__()
        self.momentum, self.dead_below, self.start_step = momentum, dead_below, start_step
        self.register_buffer("vectors", F.normalize(torch.randn(num_codes, dim), dim=1))
        self.register_buffer("moving_hits", torch.zeros(num_codes))
        self.register_buffer("last_hits", torch.zeros(num_codes))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        # On the meta device the network is only counted, as in steps after k-means.
        self._known_started = self.vectors.is_meta
        self._step = -1
        self._sums = self._hits = self.vectors.new_zeros(0)
        self._sample = RowSample(0)

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.vectors)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """(R, C) unit vectors → (R,) int64 codes with the largest cosine, in float32."""
        with without_autocast(latents):
            return _nearest(latents.float(), self.vectors)

    @torch.no_grad()
    def forward(self, latents: Tensor, keys: Tensor, step: int) -> Quantized:
        """Quantize a micro-batch; in training, also collect it for :meth:`move_codes`.

        Args:
            latents: (B, N, C) float32 unit vectors.
            keys: (B,) int64, random and different for every image of the step.
            step: Optimizer step. Up to ``start_step`` there are no codes yet: it returns the
                latents themselves.
        """
        rows = latents.flatten(0, 1)
        is_started = self.is_started
        codes = self.nearest(rows) if is_started else torch.zeros_like(rows[:, 0]).long()
        if self.training:
            self._collect(rows, codes, keys, step)
        vectors = self.vectors[codes] if is_started else rows
        return Quantized(codes.view(latents.shape[:2]), vectors.view_as(latents))

    @property
    def is_started(self) -> bool:
        """Whether there are codes."""
        if not self._known_started:  # on a GPU this waits for it, but only until k-means
            self._known_started = bool(self.started)
        return self._known_started

    def _collect(self, rows: Tensor, codes: Tensor, keys: Tensor, step: int) -> None:
        if not self.is_started and step < self.start_step:
            return
        if step != self._step:  # what an unapplied step collected is dropped
            self._step = step
            # In float64, so that the sums do not depend on their order.
            self._sums = torch.zeros_like(self.vectors, dtype=torch.float64)
            self._hits = torch.zeros_like(self.moving_hits, dtype=torch.float64)
            per_code = 1 if self.is_started else _KMEANS_ROWS_PER_CODE
            self._sample = RowSample(per_code * self.num_codes)
        self._sums.index_add_(0, codes, rows.double())
        self._hits += hits_of(codes, self.num_codes)
        if not self.is_started or self.dead_below:
            self._sample.add(row_keys(keys, len(rows) // len(keys)), rows)

    @torch.no_grad()
    def move_codes(self) -> None:
        """Move the codes once, after an applied step; every rank calls it.

        code ← normalize(momentum · code + (1 − momentum) · normalize(sum of its latents)); a code
        without any stays. Then the dead ones are replaced by latents of this step.
        """
        if self._step < 0:  # nothing was collected yet
            return
        hits = sum_over_ranks(self._hits)
        mean_hits = float(hits.sum()) / self.num_codes
        if self.is_started:
            means = F.normalize(sum_over_ranks(self._sums), dim=1).float()
            moved = F.normalize(torch.lerp(means, self.vectors, self.momentum), dim=1)
            self.vectors.copy_(torch.where(hits[:, None] > 0, moved, self.vectors))
            self.last_hits.copy_(hits)
            self.moving_hits.lerp_(self.last_hits, 1 - self.momentum)
            self._replace_dead(mean_hits)
        else:
            rows = self._sample.over_ranks(_KMEANS_ROWS_PER_CODE * self.num_codes)
            self.vectors.copy_(from_first_rank(spherical_kmeans(rows, self.num_codes)))
            self.last_hits.copy_(hits_of(self.nearest(rows), self.num_codes))
            self.moving_hits.fill_(mean_hits)
            self.started.fill_(1)
        self._step = -1

    def _replace_dead(self, mean_hits: float) -> None:
        """Last in the step, or the average would undo it."""
        dead = torch.nonzero(self.moving_hits < self.dead_below * mean_hits).flatten()
        if len(dead) == 0:
            return
        rows = from_first_rank(self._sample.over_ranks(len(dead)))
        dead = dead[: len(rows)]
        self.vectors[dead] = rows
        # As often used as the average code, or it would be replaced again in the next step.
        self.moving_hits[dead] = mean_hits

    def usage(self) -> dict[str, Tensor]:
        """`codes_used`, the share of the codes that occurred in the latest step, and `perplexity`,
        the exponential of their distribution's entropy, from 1 to K; nothing until there are codes.
        """
        if not self.is_started:
            return {}
        shares = self.last_hits / self.last_hits.sum().clamp(min=1)
        entropy = -torch.special.xlogy(shares, shares).sum()
        return {"codes_used": (self.last_hits > 0).float().mean(), "perplexity": entropy.exp()}


def hits_of(codes: Tensor, num_codes: int) -> Tensor:
    """(…) int64 codes → (K,) float64, how often each occurs."""
    # Not bincount, which on a GPU waits for the result to know its size.
    ones = torch.ones(codes.numel(), dtype=torch.float64, device=codes.device)
    return ones.new_zeros(num_codes).index_add_(0, codes.flatten(), ones)


@torch.no_grad()
def spherical_kmeans(rows: Tensor, count: int) -> Tensor:
    """k-means by cosine (Dhillon & Modha 2001), started from the first rows.

    Args:
        rows: (R, C) unit vectors in random order.
        count: K, the number of clusters; at most R.

    Returns:
        (K, C) unit vectors. A cluster that loses all of its rows stays where it is.
    """
    if len(rows) < count:
        raise ValueError(f"{len(rows):,} rows cannot become {count:,} clusters")
    rows = rows.float()
    with without_autocast(rows):
        centers = rows[:count].clone()
        for _ in range(_KMEANS_ITERATIONS):
            nearest = _nearest(rows, centers)
            sums = torch.zeros_like(centers, dtype=torch.float64)
            for codes, part in zip(nearest.split(2**16), rows.split(2**16), strict=True):
                sums.index_add_(0, codes, part.double())
            hit = hits_of(nearest, count)[:, None] > 0
            centers = torch.where(hit, F.normalize(sums, dim=1).float(), centers)
    return centers


def _nearest(rows: Tensor, vectors: Tensor) -> Tensor:
    """(R, C) and (K, C) → (R,) int64."""
    at_once = max(1, _MOST_COSINES // len(vectors))
    return torch.cat([(part @ vectors.T).argmax(dim=1) for part in rows.split(at_once)])
