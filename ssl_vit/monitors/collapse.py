"""Tells collapse from learning: from a run's measures to an alarm that names symptom and cure.

A network that has not begun to learn looks collapsed: the class tokens of a random ViT lie e⁻⁶
apart. So what is small at the start is not an alarm before the warm-up is over; what was larger
once, or is sharp and the same for all images, is one at once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ssl_vit.objectives.method import MethodConfig, Symptom

# Looks in a row that see the same before it is an alarm: one batch may be odd.
_PATIENCE = 3
# Updates at the least in which a network may look as it began.
_GRACE_STEPS = 200

# Of the images, share that different prototypes; of log C, the entropy of a target.
_SAME_CODES, _SHARP = 0.05, 0.5
_UNIFORM = 0.98
# Of all directions; of the most that the run had.
_ONE_DIRECTION, _FALLEN = 0.02, 0.1
_RANK_FALLEN, _LEAST_PEAK_RANK = 0.25, 8.0


@dataclass(frozen=True)
class Alarm:
    """Something that usually means that a run learns nothing any more."""

    step: int
    """Updates made."""
    symptom: Symptom
    evidence: str
    """What was seen, with figures."""
    remedy: str
    """The settings that usually cure it."""


class CollapseWatch:
    """Judges measures one look after the other; an alarm is raised once until its symptom goes.

    Args:
        objective: Decides what to say.
        warmup_steps: Updates in which the learning rate rises.
    """

    def __init__(self, objective: MethodConfig, warmup_steps: int) -> None:
        self.objective = objective
        self.grace_steps = max(warmup_steps, _GRACE_STEPS)
        self._peaks: dict[str, float] = {}
        self._streaks: dict[Symptom, int] = {}

    @property
    def active(self) -> list[Symptom]:
        """Those of which an alarm was raised and that are still there."""
        return [symptom for symptom, count in self._streaks.items() if count >= _PATIENCE]

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up what was seen before a restart, so that a fall is measured from the run's own
        height and an alarm that lasts is not raised anew.

        Args:
            lines: Of `metrics.jsonl`, the oldest first; what was not finite is None there.
        """
        for line in lines:
            if line.get("monitor/spread") is not None:
                measures = {name: each for name, each in line.items() if isinstance(each, float)}
                self.judge(line["step"], measures)

    def judge(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """New alarms.

        Args:
            step: Updates made.
            measures: By the names they have in `metrics.jsonl`; a symptom whose measures are not
                there is not looked for.
        """
        found = self._symptoms(step, measures)
        self._streaks = {symptom: self._streaks.get(symptom, 0) + 1 for symptom in found}
        return [
            Alarm(step, symptom, evidence, self.objective.cures(symptom))
            for symptom, evidence in found.items()
            if self._streaks[symptom] == _PATIENCE
        ]

    def _symptoms(self, step: int, measures: Mapping[str, float]) -> dict[Symptom, str]:
        found: dict[Symptom, str] = {}
        is_late = step > self.grace_steps
        if self.objective.num_codes and "teacher_entropy" in measures:
            self._look_at_answers(is_late, measures, found)
        if "monitor/spread" in measures:
            now, peak = self._with_peak("monitor/spread", measures)
            if (is_late and now < _ONE_DIRECTION) or now < _FALLEN * peak - _ONE_DIRECTION:
                found["one direction"] = (
                    f"the features of all images are nearly the same: spread {now:.3f} of 1, at "
                    f"most {peak:.3f} before"
                )
        if "monitor/rankme" in measures:
            now, peak = self._with_peak("monitor/rankme", measures)
            if is_late and peak >= _LEAST_PEAK_RANK and now < _RANK_FALLEN * peak:
                found["few dimensions"] = (
                    f"features use ever fewer dimensions: RankMe {now:.1f}, {peak:.1f} before"
                )
        return found

    def _look_at_answers(
        self,
        is_late: bool,
        measures: Mapping[str, float],
        found: dict[Symptom, str],
    ) -> None:
        most = math.log(self.objective.num_codes)
        entropy = measures["teacher_entropy"]
        if entropy < _SHARP * most and measures.get("monitor/code_usage", 1.0) < _SAME_CODES:
            found["one answer"] = (
                "the teacher gives all images the same prototype: entropy of a target "
                f"{entropy:.2f} of {most:.2f}, and only {measures['monitor/code_usage']:.1%} of "
                "the images' prototypes differ"
            )
        if is_late and entropy > _UNIFORM * most:
            found["no answer"] = (
                f"the teacher gives every image all prototypes alike: entropy of a target "
                f"{entropy:.2f} of {most:.2f}"
            )

    def _with_peak(self, name: str, measures: Mapping[str, float]) -> tuple[float, float]:
        now = measures[name]
        self._peaks[name] = max(now, self._peaks.get(name, 0.0))
        return now, self._peaks[name]
