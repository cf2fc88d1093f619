"""What the ranks agree on: values gathered from all of them, and a check that all were started
alike.
"""

from typing import TypeVar

import torch

from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError

T = TypeVar("T")


def gather(value: T, processes: Processes) -> list[T]:
    """The values of all ranks, by rank; the same on each. Slow, because pickled: for rare use."""
    found = [value] * processes.world_size
    if processes.world_size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def refuse_disagreement(facts: dict[str, str], processes: Processes) -> None:
    """Check before training that all ranks have the same facts.

    Args:
        facts: Name → value on this rank.
        processes: This rank's place.

    Raises:
        UserError: Two ranks differ; raised on every rank, names the two.
    """
    everyone = gather(facts, processes)
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"rank {rank} was started with a different {name} than rank 0"
                    f"{_first_difference(value, theirs.get(name, ''))}",
                    "start all ranks with the same command, code and data",
                )


def _first_difference(ours: str, theirs: str) -> str:
    lines = zip(theirs.splitlines(), ours.splitlines(), strict=False)
    differing = [(other.strip(), own.strip()) for other, own in lines if other != own]
    return f": {differing[0][0]}, not {differing[0][1]}" if differing else ""
