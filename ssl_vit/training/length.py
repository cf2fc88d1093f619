"""How many steps a run makes: as configured, or as many as fit into the configured minutes.

The rate is measured at a run's first start (`Trainer.rehearse`), and `plan.json` keeps the
resulting number of steps, so that a resumed run has the same schedule on a slower machine too. No
torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from ssl_vit.training.config import ScheduleConfig

# Share of the minutes reserved for what is not measured and for steps slower than the measured
# ones.
RESERVE = 0.05
# Share of the minutes after which no further step is measured.
_MOST_MEASURED = 0.05
# The first steps find micro-batches that were loaded while the network was built.
_WARM_UP = 3
_ENOUGH_UPDATES, _ENOUGH_SECONDS = 10, 10.0


@dataclass(frozen=True)
class Timed:
    """The number of steps derived from minutes; zeros if nothing was measured."""

    total_steps: int = 0
    images_per_second: float = 0.0


NOT_TIMED = Timed()


@dataclass(frozen=True)
class Costs:
    """Time that a run takes on this machine, in seconds."""

    once: float
    """Time of the start, and of everything after the last step."""
    each: float
    """Time of a step, including its share of periodic events."""
    update: float
    """Time of a step alone."""
    num_measured: int
    """Number of steps that were timed."""


def steps_of(
    schedule: ScheduleConfig, samples_per_epoch: int, batch: int, timed: Timed
) -> tuple[int, int]:
    """(total steps, warm-up steps); zeros for minutes whose rate has not been measured yet."""
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
    """Whether enough steps were timed: some tens of seconds, but a small part of the run.

    Args:
        seconds: Duration of each step so far.
        minutes: Length of the whole run.
    """
    timed = seconds[_WARM_UP:]
    if len(timed) >= _ENOUGH_UPDATES and sum(timed) >= _ENOUGH_SECONDS:
        return True
    return len(seconds) > 1 and sum(seconds) >= 60 * minutes * _MOST_MEASURED


def warmed_up(seconds: Sequence[float]) -> Sequence[float]:
    """The durations after the first few steps, from which the rate follows; of two steps, at least
    one.
    """
    return seconds[min(_WARM_UP, len(seconds) - 1) :]


def slowest(costs: Sequence[Costs]) -> Costs:
    """The costs of several processes that wait for each other."""
    return Costs(
        once=max(each.once for each in costs),
        each=max(each.each for each in costs),
        update=max(each.update for each in costs),
        num_measured=min(each.num_measured for each in costs),
    )


def steps_within(minutes: float, elapsed: float, costs: Costs) -> int:
    """Number of steps with which a run ends in time; 0 if there is not enough time for one.

    Args:
        minutes: Length of the whole run, including its start and its end.
        elapsed: Seconds of it that have passed.
        costs: Time that the rest of the run takes.
    """
    left = 60 * minutes * (1 - RESERVE) - elapsed - costs.once
    return max(0, int(left / costs.each))
