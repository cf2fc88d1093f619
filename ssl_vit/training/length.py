"""How many updates a run makes: as said, or as many as fit into the minutes that were said.

The rate is measured at a run's first start (`Trainer.rehearse`), and `plan.json` keeps what follows
from it, so that a resumed run has the same schedule on a slower machine too. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from ssl_vit.training.config import ScheduleConfig

# Of the minutes: for what is not measured, and for updates that take longer than the measured ones.
RESERVE = 0.05
# Of the minutes: after so long no further update is measured.
_MOST_MEASURED = 0.05
# The first updates find micro-batches that were loaded while the network was built.
_WARM_UP = 3
_ENOUGH_UPDATES, _ENOUGH_SECONDS = 10, 10.0


@dataclass(frozen=True)
class Timed:
    """What minutes came to; zeros where nothing was measured."""

    total_steps: int = 0
    images_per_second: float = 0.0


NOT_TIMED = Timed()


@dataclass(frozen=True)
class Costs:
    """What a run takes on this machine, in seconds."""

    once: float
    """Its start, and what comes after the last update."""
    each: float
    """An update with its share of what comes every so many updates."""
    update: float
    """An update alone."""
    num_measured: int
    """Updates that were timed."""


def steps_of(
    schedule: ScheduleConfig, samples_per_epoch: int, batch: int, timed: Timed
) -> tuple[int, int]:
    """(updates in all, those of the warm-up); zeros for minutes that nothing is known of yet."""
    length, warmup = schedule.length, schedule.warmup
    match schedule.unit:
        case "epochs":
            total = round(length * samples_per_epoch / batch)
            return max(1, total), round(warmup * samples_per_epoch / batch)
        case "steps":
            return max(1, round(length)), round(warmup)
        case "minutes":
            return timed.total_steps, round(timed.total_steps * warmup / length)
    assert_never(schedule.unit)


def is_measured(seconds: Sequence[float], minutes: float) -> bool:
    """Whether enough updates were timed: some tens of seconds, but a small part of the run.

    Args:
        seconds: Of each update so far.
        minutes: Of the whole run.
    """
    timed = seconds[_WARM_UP:]
    if len(timed) >= _ENOUGH_UPDATES and sum(timed) >= _ENOUGH_SECONDS:
        return True
    return len(seconds) > 1 and sum(seconds) >= 60 * minutes * _MOST_MEASURED


def warmed_up(seconds: Sequence[float]) -> Sequence[float]:
    """Those of the updates that tell the rate; never none of two."""
    return seconds[min(_WARM_UP, len(seconds) - 1) :]


def slowest(costs: Sequence[Costs]) -> Costs:
    """Of several processes, which wait for each other."""
    return Costs(
        once=max(each.once for each in costs),
        each=max(each.each for each in costs),
        update=max(each.update for each in costs),
        num_measured=min(each.num_measured for each in costs),
    )


def steps_within(minutes: float, elapsed: float, costs: Costs) -> int:
    """Updates with which a run ends in time; 0 where there is no time for one.

    Args:
        minutes: Of the whole run, its start and its end included.
        elapsed: Seconds of them that are over.
        costs: Of what is to come.
    """
    left = 60 * minutes * (1 - RESERVE) - elapsed - costs.once
    return max(0, int(left / costs.each))
