"""How a global batch divides over processes and micro-batches. No torch here."""

import itertools

from ssl_vit.errors import UserError


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``."""
    return next(each for each in range(min(number, most), 0, -1) if number % each == 0)


def split_batch(batch: int, world_size: int, micro_batch_size: int, lanes: int) -> tuple[int, int]:
    """(images per forward pass, micro-batches per step) of one process.

    Args:
        batch: Global batch size, a multiple of ``lanes``.
        world_size: Number of processes; divides ``lanes``.
        micro_batch_size: Largest number of images per forward pass and process.
        lanes: Lanes of the sample order; suggested batch sizes are multiples of them.

    Raises:
        UserError: They do not divide; names the nearest batches that do.
    """

    def divides(candidate: int) -> bool:
        share = candidate // world_size
        return share <= micro_batch_size or share % micro_batch_size == 0

    share = batch // world_size
    if not divides(batch):
        below = next((b for b in range(batch, 0, -lanes) if divides(b)), None)
        above = next(b for b in itertools.count(batch, lanes) if divides(b))
        batches = f"{below} and {above}" if below else str(above)
        micro = largest_divisor(share, micro_batch_size)
        raise UserError(
            f"data.global_batch_size={batch} does not divide into micro-batches of "
            f"engine.micro_batch_size={micro_batch_size} on {world_size} processes",
            f"the nearest batch sizes that do are {batches}; or set "
            f"engine.micro_batch_size={micro}",
        )
    micro = min(share, micro_batch_size)
    return micro, share // micro
