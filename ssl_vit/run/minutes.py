"""A schedule in minutes on the command line: `--minutes`, and the recipe's share of warm-up."""

import math
from collections.abc import Sequence
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.overrides import apply_overrides
from ssl_vit.run.config import RunConfig
from ssl_vit.training.config import ScheduleConfig


def with_minutes(overrides: Sequence[str], minutes: float | None) -> list[str]:
    """The overrides, with the schedule in minutes if ``minutes`` is not None.

    Raises:
        UserError: They are not a valid length, or the length is given twice.
    """
    if minutes is None:
        return list(overrides)
    if not (math.isfinite(minutes) and minutes > 0):
        raise UserError(
            f"--minutes {minutes:g} is not a valid length",
            "give the number of minutes that the run may take, for example  --minutes 40",
        )
    for word in overrides:
        path = word.partition("=")[0]
        if path in ("schedule", "schedule.unit", "schedule.length"):
            raise UserError(
                f"--minutes {minutes:g} and {word} both set the length of the run",
                f"leave out --minutes, or {path}",
            )
    return [*overrides, "schedule.unit=minutes", f"schedule.length={minutes!r}"]


def apply_with_warmup(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``apply_overrides``; if the schedule changes to minutes and its warm-up is not given, the
    warm-up keeps its share of the length.

    Raises:
        UserError: As there.
    """
    own = [word for word in overrides if word.partition("=")[0].startswith("schedule")]
    if not own or any("warmup" in word for word in own):
        return apply_overrides(config, overrides)
    without = apply_overrides(config, [*overrides, "schedule.warmup=0"]).schedule
    before = config.schedule
    if without.unit != "minutes" or (before.unit, before.length) == ("minutes", without.length):
        return apply_overrides(config, overrides)
    warmup = _same_share(without.length, before)
    return apply_overrides(config, [*overrides, f"schedule.warmup={warmup!r}"])


def fill_in_warmup(values: dict[str, Any], base: ScheduleConfig) -> dict[str, Any]:
    """The values of a config file; a schedule in minutes without a warm-up gets the same share of
    warm-up as ``base``.
    """
    schedule = values.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("unit") != "minutes":
        return values
    length = schedule.get("length")
    if "warmup" in schedule or not isinstance(length, int | float):
        return values
    return values | {"schedule": schedule | {"warmup": _same_share(length, base)}}


def _same_share(length: float, base: ScheduleConfig) -> float:
    return length * base.warmup / base.length
