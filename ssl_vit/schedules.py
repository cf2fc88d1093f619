"""Schedules as functions of the step, without scheduler objects or state to checkpoint."""

import math


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from ``start`` at ``fraction`` 0 to ``end`` at 1; constant outside.

    Source: Loshchilov & Hutter 2016, arXiv 1608.03983, equation 5, without restarts.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear warm-up from 0 to ``peak``, then half a cosine to ``end``.

    Args:
        step: Optimizer step about to be taken, counted from 0. The first step of a warm-up has
            ``peak / warmup_steps``.
        total_steps: Steps in the run; the last one has (almost) ``end``.
        warmup_steps: Steps of the warm-up; 0 for none.
        peak: Value after the warm-up.
        end: Value at the end of the run.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (warm-up).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(peak, end, (step - warmup_steps) / max(1, total_steps - warmup_steps))
