"""Detects collapse: from a run's measures to an alarm that names symptom and cure.

A network that has not begun to learn looks collapsed: the class tokens of a random ViT are e⁻⁶
apart. Small measures are therefore no alarm before the warm-up is over; measures that were larger
before, or targets that are sharp and the same for all images, are one at once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ssl_vit.objectives.method import MethodConfig, Symptom

# Consecutive measurements with a symptom before it is an alarm: one batch may be odd.
_PATIENCE = 3
# Fewest steps in which a network may look as it did at the start.
_GRACE_STEPS = 200

# Number of different prototypes as a share of the images; entropy of a target as a share of log C.
_SAME_CODES, _SHARP = 0.05, 0.5
_UNIFORM = 0.98
# Share of a codebook that a step uses.
_FEW_CODES = 0.1
# Share of the variation of a tokenizer's targets that its codes explain.
_EMPTY = 0.1
# Share of the patches with the commonest token.
_ONE_TOKEN = 0.98
# Spread in itself, and as a share of the run's largest.
_ONE_DIRECTION, _FALLEN = 0.02, 0.1
_RANK_FALLEN, _LEAST_PEAK_RANK = 0.25, 8.0


@dataclass(frozen=True)
class Alarm:
    """A symptom that usually means that a run no longer learns."""

    step: int
    """Number of steps made."""
    symptom: Symptom
    evidence: str
    """The observation, with figures."""
    remedy: str
    """The settings that usually fix it."""


class CollapseWatch:
    """Judges successive measurements; an alarm is raised once and again after its symptom was gone.

    Args:
        objective: The run's objective, which decides on symptoms and remedies.
        warmup_steps: Steps in which the learning rate rises.
    """

    def __init__(self, objective: MethodConfig, warmup_steps: int) -> None:
        self.objective = objective
        self.grace_steps = max(warmup_steps, _GRACE_STEPS)
        self._peaks: dict[str, float] = {}
        self._streaks: dict[Symptom, int] = {}

    @property
    def active(self) -> list[Symptom]:
        """The symptoms that raised an alarm and are still present."""
        return [symptom for symptom, count in self._streaks.items() if count >= _PATIENCE]

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Judge the measurements from before a restart again, so that the run's peaks are known and
        an alarm that lasts is not raised again.

        Args:
            lines: Lines of `metrics.jsonl`, the oldest first; values that were not finite are None.
        """
        for line in lines:
            if line.get("monitor/spread") is not None:
                measures = {name: each for name, each in line.items() if isinstance(each, float)}
                self.judge(line["step"], measures)

    def judge(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """New alarms.

        Args:
            step: Number of steps made.
            measures: Measures by their names in `metrics.jsonl`; a symptom whose measures are
                missing is not checked.
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
        # Missing until the codebook has codes.
        if is_late and measures.get("codes_used", 1.0) < _FEW_CODES:
            found["few codes"] = (
                f"only {measures['codes_used']:.1%} of the codes were used in a step, with a "
                f"perplexity of {measures.get('perplexity', 0.0):.1f} of "
                f"{self.objective.num_codes}"
            )
        if is_late and "codes_used" in measures and measures.get("explained", 1.0) < _EMPTY:
            found["empty codes"] = (
                "the codes say nearly nothing about the target: they explain "
                f"{measures['explained']:.1%} of its variation"
            )
        if is_late and measures.get("unigram_accuracy", 0.0) > _ONE_TOKEN:
            found["few codes"] = (
                f"nearly all patches have the same token: {measures['unigram_accuracy']:.1%} of "
                "them the commonest one"
            )
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
                    "the features use fewer and fewer dimensions: "
                    f"RankMe {now:.1f}, {peak:.1f} before"
                )
        is_one = self.objective.is_symptom
        return {symptom: evidence for symptom, evidence in found.items() if is_one(symptom)}

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
                f"the teacher gives every image all prototypes equally: entropy of a target "
                f"{entropy:.2f} of {most:.2f}"
            )

    def _with_peak(self, name: str, measures: Mapping[str, float]) -> tuple[float, float]:
        now = measures[name]
        self._peaks[name] = max(now, self._peaks.get(name, 0.0))
        return now, self._peaks[name]
