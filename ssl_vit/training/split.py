"""How a global batch divides over processes and micro-batches. No torch here."""

import itertools

from ssl_vit.errors import UserError


def largest_divisor(number: int, most: int) -> int:
    """The largest that is no larger than ``most``."""
    return next(each for each in range(min(number, most), 0, -1) if number % each == 0)


def split_batch(batch: int, world_size: int, micro_batch_size: int, lanes: int) -> tuple[int, int]:
    """(images a forward pass, micro-batches an update) of one process.

    Args:
        batch: Global batch, a multiple of ``lanes``.
        world_size: Processes; divides ``lanes``.
        micro_batch_size: Images a forward pass and process, at most.
        lanes: Of the sample order; a batch that is suggested instead keeps them.

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
            f"data.global_batch_size={batch} does not divide over {world_size} processes of "
            f"engine.micro_batch_size={micro_batch_size}",
            f"the nearest batches that do are {batches}; or set engine.micro_batch_size={micro}",
        )
    micro = min(share, micro_batch_size)
    return micro, share // micro
