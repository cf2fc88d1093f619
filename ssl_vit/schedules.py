"""Schedules are functions of the step: there is no scheduler object, and so no scheduler state to
lose.
"""

import math


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from ``start`` (fraction 0) to ``end`` (fraction 1).

    Source: Loshchilov & Hutter 2016, arXiv 1608.03983, equation 5, without restarts.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear from 0 over the warm-up, then half a cosine to ``end``.

    Args:
        step: Update about to be made, from 0. The first update of a warm-up has ``peak /
            warmup_steps``.
        total_steps: The last update has (almost) ``end``.
        warmup_steps: 0 for none.

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2 (warm-up).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(peak, end, (step - warmup_steps) / max(1, total_steps - warmup_steps))
